"""Stages that are frozen, thaw one after the other, and train at rates of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train.fit as fit_module
from configs.load import load
from configs.schema import TrainConfig, TransferConfig
from tests.processes import python, run_ranks, torchrun
from tests.test_optim import ADAMW, SGD
from tests.test_saves import KILLER, assert_same
from tests.test_saves import overrides as overrides_of_saves
from tests.test_strategy import images as batch_of
from tests.test_strategy import small_net, strategy_here
from train.checkpoint import Progress, load_checkpoint
from train.fit import thaw
from train.loop import Job, Training, train_epoch
from train.model import build_model, stages
from train.optim import build_optimizer, set_lr
from train.run import run
from train.strategy import Strategy, Tensors
from train.transfer import freeze, num_frozen

# Of the four epochs, one trains the head alone; then a stage thaws in each. 4 steps an epoch.
SCHEDULE = ("epochs=4", "transfer.frozen_epochs=1", "transfer.gradual=1", "transfer.lr_decay=0.5")
MOVING = [
    {"head"},
    {"head", "features.14-18"},
    {"head", "features.14-18", "features.7-13"},
    {"head", "features.14-18", "features.7-13", "features.4-6"},
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]


def config(*overrides: str) -> TrainConfig:
    return load("train", TrainConfig, list(overrides))


def start(path: Path) -> Tensors:
    """Weights in a file, and as they are in it."""
    torch.manual_seed(5)
    state = build_model(config("model=mobilenet_v2").model, 2).state_dict()
    torch.save(state, path)
    return state


def overrides(images: list[str], run_dir: Path, weights: Path, *more: str) -> list[str]:
    return overrides_of_saves(images, run_dir, f"model.weights={weights}", *SCHEDULE, *more)


@pytest.mark.parametrize(
    ("frozen_epochs", "gradual", "expected"),
    [
        (0, 0, [0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (2, 0, [5, 5, 0, 0, 0, 0, 0, 0, 0]),
        (1, 1, [5, 4, 3, 2, 1, 0, 0, 0, 0]),
        (2, 2, [5, 5, 4, 4, 3, 3, 2, 2, 1]),
        (0, 3, [4, 4, 4, 3, 3, 3, 2, 2, 2]),
    ],
)
def test_the_schedule(frozen_epochs: int, gradual: int, expected: list[int]) -> None:
    transfer = TransferConfig(frozen_epochs, gradual, lr_decay=1.0)
    assert [num_frozen(transfer, 5, epoch) for epoch in range(9)] == expected


@pytest.mark.parametrize("optim", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_stage_trains_at_the_rate_of_its_depth(optim: Any) -> None:
    model = build_model(config("model=resnet18").model, 10)
    optimizer = build_optimizer(optim, model, lr_decay=0.5)
    set_lr(optimizer, 0.4)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {
        name: {rates[id(p)] for module in modules for p in module.parameters()}
        for name, modules in stages(model).items()
    }
    assert found == {
        "head": {0.4},
        "layer4": {0.2},
        "layer3": {0.1},
        "layer2": {0.05},
        "layer1": {0.025},
        "stem": {0.0125},
    }


def stage_of(name: str) -> str:
    """Of a tensor of MobileNetV2."""
    first, _, rest = name.partition(".")
    if first == "classifier":
        return "head"
    bounds = [(0, 1), (2, 3), (4, 6), (7, 13), (14, 18)]
    return next(f"features.{low}-{high}" for low, high in bounds if low <= int(rest.split(".")[0]) <= high)


def moved(before: Tensors, after: Tensors) -> set[str]:
    return {stage_of(name) for name in before if not torch.equal(before[name], after[name])}


def test_frozen_stages_stay_bit_for_bit_and_thawed_ones_move(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [start(tmp_path / "w.pt")]

    def record(training: Training, loader: Any, job: Job) -> bool:
        finished = train_epoch(training, loader, job)
        states.append({name: value.clone() for name, value in training.model.state_dict().items()})
        return finished

    monkeypatch.setattr(fit_module, "train_epoch", record)
    # Weight decay, L1 and the moving average must let what is frozen alone, too.
    run(config(*overrides(images, tmp_path / "run", tmp_path / "w.pt", "optim.weight_decay=0.1")))
    assert [moved(*states[epoch : epoch + 2]) for epoch in range(4)] == MOVING
    for epoch, names in enumerate(MOVING):
        statistics = {name for name in states[0] if "running_" in name and stage_of(name) in names}
        still = [name for name in statistics if torch.equal(states[epoch][name], states[epoch + 1][name])]
        assert still == []
    average = load_checkpoint(tmp_path / "run" / "checkpoint.pt").ema
    assert average is not None
    assert moved(states[0], average) == MOVING[-1]
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "epoch 4: features.0-1, features.2-3 frozen" in log


def test_a_run_that_is_killed_between_two_thaws_continues_bit_for_bit(
    images: list[str], tmp_path: Path
) -> None:
    weights = tmp_path / "w.pt"
    start(weights)
    run(config(*overrides(images, tmp_path / "whole", weights)))
    arguments = overrides(images, tmp_path / "run", weights)
    # In the third epoch's third step; the last checkpoint is after its second.
    assert python("-c", KILLER, "11", *arguments).returncode == -9
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").progress.step == 10
    # A checkpoint has all the weights: where they came from is not asked again.
    weights.unlink()
    run(config(*arguments, "resume=true"))
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_run_starts_from_another_runs_checkpoint(images: list[str], tmp_path: Path) -> None:
    start(tmp_path / "w.pt")
    run(config(*overrides(images, tmp_path / "one", tmp_path / "w.pt")))
    first = load_checkpoint(tmp_path / "one" / "checkpoint.pt").weights
    checkpoint = tmp_path / "one" / "checkpoint.pt"
    only_head = ("epochs=1", "optim.warmup_epochs=0", "transfer.gradual=0")
    run(config(*overrides(images, tmp_path / "two", checkpoint, *only_head)))
    assert moved(first, load_checkpoint(tmp_path / "two" / "checkpoint.pt").model) == {"head"}


def epochs(name: str) -> list[dict[str, Any]]:
    """The parameters of a small network after each of three epochs of two steps, the first with the head
    alone, then with a stage more each. BatchNorm as in evaluation, so that ranks do not change the result."""
    strategy: Strategy = strategy_here(name)
    wanted = config("transfer.frozen_epochs=1", "transfer.gradual=1", "model.weights=imagenet")
    net = small_net()
    strategy.shard(net)
    freeze(net, wanted.transfer, 0)
    optimizer = build_optimizer(wanted.optim, net, lr_decay=0.5)
    set_lr(optimizer, 0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    training = Training(net, strategy.prepare(net), optimizer, scaler, None, Progress(), {})
    batch = batch_of(8)
    share = 8 // strategy.replicas
    mine = slice(strategy.replica * share, (strategy.replica + 1) * share)
    found = []
    for epoch in range(3):
        training.progress.epoch = epoch
        thaw(training, wanted, strategy)
        training.prepared.eval()
        for _ in range(2):
            strategy.backward(
                training.prepared,
                batch.images[mine],
                lambda logits, rows: nn.functional.cross_entropy(logits, batch.labels[mine][rows]),
                scaler,
                share=1.0,
                exchange=True,
            )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        whole = strategy.whole({name: p.detach() for name, p in net.named_parameters()})
        found.append({name: value.numpy().copy() for name, value in whole.items()})
    strategy.close()
    return found


@pytest.mark.parametrize(
    "name",
    ["ddp", pytest.param("fsdp", marks=pytest.mark.slow), pytest.param("pipeline", marks=pytest.mark.slow)],
)
def test_thawing_is_the_same_on_two_ranks(name: str) -> None:
    expected, got = epochs("auto"), run_ranks(epochs, 2, name)
    ours = got if name == "ddp" else got[:1]
    last = {key: value.detach().numpy() for key, value in small_net().named_parameters()}
    moving = [("fc",), ("fc", "layer2"), ("fc", "layer2", "layer1")]
    for epoch, parts in enumerate(moving):
        for key, value in expected[epoch].items():
            assert (value == last[key]).all() == (not key.startswith(parts)), key
            for rank in ours:
                assert rank[epoch][key] == pytest.approx(value, rel=1e-4, abs=1e-5), (epoch, key)
        last = expected[epoch]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "pipeline"])
def test_a_run_on_two_ranks_keeps_what_is_frozen(strategy: str, images: list[str], tmp_path: Path) -> None:
    before = start(tmp_path / "w.pt")
    arguments = overrides(images, tmp_path / "run", tmp_path / "w.pt", f"strategy={strategy}")
    done = torchrun(2, "-m", "train", *arguments)
    assert done.returncode == 0, done.stderr
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert moved(before, saved.model) == MOVING[-1]
