"""Learning from teachers: the loss, who is asked on which ranks, and that a run continues bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from configs.load import load
from configs.schema import DistillConfig, TrainConfig
from data.loader import Batch
from deploy.errors import LabError
from tests.processes import python, run_ranks
from tests.test_saves import assert_same, overrides, train
from tests.test_strategy import images as batch_of
from tests.test_strategy import small_net, strategy_here
from tests.test_train_run import KILLER
from train.distill import Taps, attention_loss, dist_loss, distilled, soft_loss
from train.model import build_model
from train.task import classification, draws_for

CPU = torch.device("cpu")


def by_hand(logits: torch.Tensor, teachers: list[torch.Tensor], temperature: float) -> float:
    """Of the definition, in float64."""
    targets = sum((t.double() / temperature).softmax(1) for t in teachers) / len(teachers)
    ours = (logits.double() / temperature).softmax(1)
    assert isinstance(targets, torch.Tensor)
    return float(temperature**2 * (targets * (targets.log() - ours.log())).sum(1).mean())


class Teacher(nn.Module):
    """Logits that depend on the images."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(3, 5)
        self.asked = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        logits: torch.Tensor = self.layer(images.mean((2, 3)))
        return logits


@pytest.mark.parametrize("mixed", [[], ["mixup=0.4"]])
def test_the_loss_is_the_formula_on_the_images_that_the_network_sees(mixed: list[str]) -> None:
    config = load("train", TrainConfig, ["label_smoothing=0.1", *mixed])
    teachers = [Teacher(1).eval().requires_grad_(False), Teacher(2).eval().requires_grad_(False)]
    usual = classification(config, np.full(5, 10), CPU)
    task = distilled(usual, teachers, DistillConfig([], 3.0, 0.7, "kd", 0.0), CPU, "fp32")
    batch = batch_of(8)
    seen, criterion = task(batch, draws_for(0, 0, 0, 0))
    seen_before, plain = usual(batch, draws_for(0, 0, 0, 0))
    assert torch.equal(seen, seen_before)
    assert torch.equal(seen, batch.images) != bool(mixed)
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
    told = [teacher(seen) for teacher in teachers]
    for rows in (slice(None), torch.tensor([1, 4, 6])):
        expected = 0.7 * by_hand(logits[rows], [t[rows] for t in told], 3.0)
        expected += 0.3 * float(plain(logits[rows], rows))
        assert float(criterion(logits[rows], rows)) == pytest.approx(expected, rel=1e-5)
    assert [teacher.asked for teacher in teachers] == [2, 2], "once a batch, and once by this test"


def test_a_network_that_agrees_has_nothing_to_learn() -> None:
    logits = torch.randn(4, 5, requires_grad=True)
    value = soft_loss(logits, (logits.detach() / 2).log_softmax(1), 2.0)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6


def test_dist_is_the_correlation() -> None:
    draws = torch.Generator().manual_seed(1)
    logits, told = (torch.randn(6, 5, generator=draws) for _ in range(2))
    ours, theirs = ((values.double() / 2).softmax(1).numpy() for values in (logits, told))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)])
    value = dist_loss(logits, (told / 2).log_softmax(1), 2.0)
    assert float(value) == pytest.approx(4 * (rows + columns), rel=1e-4)
    # A teacher that is surer of the same has nothing new to say: what DIST is for.
    assert float(dist_loss(logits, (logits / 2).log_softmax(1), 2.0)) == pytest.approx(0, abs=1e-5)


def test_attention_is_of_any_width_and_knows_where_not_how_much() -> None:
    draws = torch.Generator().manual_seed(2)
    ours = [torch.rand(3, 8, 8, generator=draws), torch.rand(3, 4, 4, generator=draws)]
    assert float(attention_loss(ours, [5 * m for m in ours])) == pytest.approx(0, abs=1e-6)
    a, b = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    a[0, 0, 0] = b[0, 1, 1] = 1.0
    assert float(attention_loss([a], [b])) == pytest.approx(1.0)
    assert float(attention_loss([a], [torch.ones(1, 3, 9, 9), b])) == pytest.approx(1.0)


def test_where_the_stages_look_is_learnt_from() -> None:
    config = load("train", TrainConfig, ["model=resnet18"])
    torch.manual_seed(0)
    teacher = build_model(config.model, 5).eval().requires_grad_(False)
    network = build_model(config.model, 5).eval()
    usual = classification(config, np.full(5, 10), CPU)
    values = {}
    for features in (0.0, 2.0):
        distil = DistillConfig([], 4.0, 1.0, "kd", features)
        task = distilled(usual, [teacher], distil, CPU, "fp32", Taps(network) if features else None)
        images, criterion = task(batch_of(4), draws_for(0, 0, 0, 0))
        values[features] = criterion(network(images), slice(None))
    network.zero_grad()
    (values[2.0] - values[0.0]).backward()
    gradient = network.get_parameter("layer1.1.conv2.weight").grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0
    network.load_state_dict(teacher.state_dict())
    taps = Taps(network)
    images = batch_of(4).images
    theirs = Taps(teacher)
    with torch.no_grad():
        network(images), teacher(images)
    assert len(taps.maps) == 4
    assert float(attention_loss(taps.maps, theirs.maps)) == pytest.approx(0, abs=1e-6)


def gradient(name: str) -> dict[str, Any]:
    """Of one global batch of 8 with a teacher beside the labels."""
    strategy = strategy_here(name, microbatches=2 if name == "pipeline" else 1)
    net = small_net()
    strategy.shard(net)
    prepared = strategy.prepare(net).eval()
    teacher = Teacher(1)
    config = load("train", TrainConfig, [])
    usual = classification(config, np.full(5, 10), CPU)
    task = distilled(usual, [teacher], DistillConfig([], 4.0, 0.9, "kd", 0.0), CPU, "fp32")
    share = 8 // strategy.replicas
    mine = slice(strategy.replica * share, (strategy.replica + 1) * share)
    whole = batch_of(8)
    inputs, criterion = task(
        Batch(whole.images[mine], whole.labels[mine]), draws_for(0, 0, 0, strategy.replica)
    )
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loss = strategy.backward(prepared, inputs, criterion, scaler, share=1.0, exchange=True)
    found = strategy.whole({key: p.grad for key, p in net.named_parameters() if p.grad is not None})
    result = {
        "loss": float(strategy.sum(loss)) / strategy.replicas,
        "gradients": {key: value.numpy() for key, value in found.items()},
        "asked": teacher.asked,
    }
    strategy.close()
    return result


@pytest.mark.parametrize(
    "name",
    ["pipeline", pytest.param("ddp", marks=pytest.mark.slow), pytest.param("fsdp", marks=pytest.mark.slow)],
)
def test_two_ranks_learn_what_one_learns(name: str) -> None:
    expected = gradient("single")
    ranks = run_ranks(gradient, 2, name)
    for key, value in expected["gradients"].items():
        np.testing.assert_allclose(
            ranks[0]["gradients"][key], value, rtol=1e-4, atol=1e-5, err_msg=f"{name} {key}"
        )
    assert [rank["loss"] for rank in ranks] == pytest.approx([expected["loss"]] * 2, rel=1e-5)
    assert [rank["asked"] for rank in ranks] == ([0, 1] if name == "pipeline" else [1, 1])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def teacher(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("teacher") / "run"
    train(files, run_dir, "model=resnet18", "epochs=1", "optim.warmup_epochs=0.0")
    return run_dir / "checkpoint.pt"


def test_a_killed_run_with_teachers_continues_bit_for_bit(
    files: list[str],
    teacher: Path,
    tmp_path: Path,
) -> None:
    learning = [f"distill.teachers=[{teacher}]", "distill.method=dist", "distill.features=10.0"]
    train(files, tmp_path / "whole", *learning)
    train(files, tmp_path / "alone")
    killed = python("-c", KILLER, *overrides(files, tmp_path / "run", *learning))
    assert killed.returncode == -9, killed.stderr
    train(files, tmp_path / "run", *learning, "resume=true")
    assert_same(tmp_path / "whole", tmp_path / "run")
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "whole", tmp_path / "alone")


def test_teachers_that_are_missing_or_see_other_images_are_refused(
    files: list[str],
    teacher: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(LabError, match=r"no checkpoint .*no\.pt"):
        train(files, tmp_path / "a", f"distill.teachers=[{teacher},{tmp_path / 'no.pt'}]")
    for number, (more, said) in enumerate(
        [("data.num_classes=3", "class_names"), ("data.input.resize=36", "resize: 32 there, 36 here")]
    ):
        with pytest.raises(LabError, match=said):
            train(files, tmp_path / f"b{number}", f"distill.teachers=[{teacher}]", more)
    assert not list(tmp_path.glob("*/checkpoint.pt"))
