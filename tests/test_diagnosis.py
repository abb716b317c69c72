"""What a look into the network names, what it leaves alone, and that it disturbs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.load import load
from configs.schema import TrainConfig
from tests.processes import python, run_ranks
from tests.test_strategy import images, small_net, strategy_here
from tests.test_train_run import KILLER, assert_same_run, overrides, records, scalars, train
from train.diagnosis import NAME, Diagnosis, Layer, findings
from train.monitor import Monitor

SOUND = Layer(1.0, 1.0, 0.0, 1.0, 3.0, 0.5, 0.4, 0.0)


def look(model: nn.Module, folder: Path, strategy_name: str = "single") -> dict[str, Any]:
    """Rank 0's diagnosis of a step over a global batch of 8 in two passes, nothing elsewhere."""
    strategy = strategy_here(strategy_name)
    strategy.shard(model)
    folder.mkdir(exist_ok=True)
    config = load("train", TrainConfig, ["diagnose.every=1"])
    monitor = Monitor(folder, 0, evaluated=False, enabled=strategy.ranks.is_first)
    diagnosis = Diagnosis(config, folder, model, strategy, monitor)
    prepared = strategy.prepare(model).eval()  # BatchNorm's statistics are of one rank's images
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    batch, share = images(8), 4 // strategy.replicas
    for step in (1, 2):
        model.zero_grad()
        diagnosis.begin(step)
        for part in range(2):
            first = (2 * strategy.replica + part) * share
            labels = batch.labels[first : first + share]
            strategy.backward(
                prepared,
                batch.images[first : first + share],
                lambda logits, rows, labels=labels: nn.functional.cross_entropy(logits, labels[rows]),  # type: ignore[misc]
                torch.amp.GradScaler("cpu", enabled=False),
                share=0.5,
                exchange=part == 1,
            )
        diagnosis.end(step, 1)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    monitor.close()
    strategy.close()
    if not strategy.ranks.is_first:
        return {}
    line: dict[str, Any] = json.loads((folder / NAME).read_text().splitlines()[-1])
    return line


def plain(depth: int, activation: Callable[[], nn.Module], scale: float) -> nn.Module:
    """`depth` linear layers of 16 units with the weights of He et al. 2015 times `scale`."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(3 * 16 * 16, 16), activation()]
    for _ in range(depth - 2):
        layers += [nn.Linear(16, 16), activation()]
    layers.append(nn.Linear(16, 5))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            layer.weight.data *= scale
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def test_sigmoids_in_depth_vanish_at_the_input(tmp_path: Path) -> None:
    line = look(plain(16, nn.Sigmoid, 1.0), tmp_path)
    assert line["findings"][0].startswith("vanishing gradient in 1 (norm ")
    assert not any("exploding" in words or "in 31 " in words for words in line["findings"])


def test_tiny_weights_vanish_in_all_layers(tmp_path: Path) -> None:
    line = look(plain(8, nn.ReLU, 1e-3), tmp_path)
    assert [words[:22] for words in line["findings"]] == ["vanishing gradient in "] * 8


def test_large_weights_explode(tmp_path: Path) -> None:
    line = look(plain(8, nn.ReLU, 10.0), tmp_path)
    assert [words[:22] for words in line["findings"]] == ["exploding gradient in "] * 8


def test_a_sound_network_is_left_alone(tmp_path: Path) -> None:
    line = look(small_net(), tmp_path)
    assert line["findings"] == []
    assert list(line["layers"]) == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2",
        "layer2.0.conv1", "layer2.0.conv2", "fc",
    ]  # fmt: skip
    assert line["layers"]["fc"]["zeros"] is None
    assert 0.3 < line["layers"]["conv1"]["zeros"] < 0.7


def test_a_dead_layer_is_named(tmp_path: Path) -> None:
    net = plain(3, nn.ReLU, 1.0)
    net[3].bias.data.fill_(-100)  # type: ignore[index]
    line = look(net, tmp_path)
    dead = "dead ReLU behind 3 (100.0% of its outputs are zero, in no image less than 100.0%; 100.0% of its"
    assert any(words.startswith(dead) for words in line["findings"])
    assert line["layers"]["3"]["dead"] == 1


def test_the_rules_at_their_borders() -> None:
    def found(**changes: Any) -> list[str]:
        one = Layer(**{**vars(SOUND), **changes})
        return list(findings({"a": SOUND, "b": SOUND, "c": one}, lr=0.1))

    assert found() == found(grad_norm=None) == found(grad_norm=2e-3) == found(grad_norm=999.0) == []
    assert found(grad_norm=0.9e-3) == found(grad_norm=0.0) == ["vanishing c"]
    assert found(grad_norm=1.0, weight_norm=1e7) == ["vanishing c"]  # lost in float32
    assert found(grad_norm=1001.0, weight_norm=101.0) == []  # the step is shorter than the weight
    assert found(grad_norm=999.0, weight_norm=0.09) == ["exploding c"]
    assert found(grad_norm=1001.0) == found(grad_norm=float("nan")) == ["exploding c"]
    assert found(least_zeros=0.951) == ["dead c"]
    assert found(least_zeros=0.949, dead=0.9) == []
    assert found(max_abs=float("inf")) == ["outputs c"]


def two(name: str, folder: str) -> dict[str, Any]:
    return look(small_net(), Path(folder), name)


@pytest.mark.parametrize("name", ["ddp", "fsdp", pytest.param("pipeline", marks=pytest.mark.slow)])
def test_two_ranks_see_what_one_sees(name: str, tmp_path: Path) -> None:
    alone = look(small_net(), tmp_path / "alone")
    line, nothing = run_ranks(two, 2, name, str(tmp_path / "both"))
    assert nothing == {}
    for layer, expected in alone["layers"].items():
        for key, value in expected.items():
            got = line["layers"][layer][key]
            near = got is None if value is None else got == pytest.approx(value, rel=1e-4, abs=1e-6)
            assert near, (layer, key, got, value)


DIAGNOSE = "diagnose.every=2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]


def test_a_killed_run_is_the_one_that_nobody_looked_into(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "plain")
    assert not (tmp_path / "plain" / NAME).exists()
    killed = python("-c", KILLER, *overrides(data, tmp_path / "run", DIAGNOSE))
    assert killed.returncode == -9, killed.stderr
    train(data, tmp_path / "run", DIAGNOSE, "resume=true")
    assert_same_run(tmp_path / "plain", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8, 10, 12]
    drawn = scalars(tmp_path / "run", "diagnosis/grad_norm/classifier.1")
    assert [step for step, _ in drawn] == [1, 2, 4, 6, 8, 10, 12]
    assert records(tmp_path / "run")[0]["step"] == 2


def test_a_profile_names_the_costliest_operators(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "run", "epochs=1", "optim.warmup_epochs=0", "profile={start: 2, steps: 2}")
    (trace,) = (tmp_path / "run" / "tensorboard").glob("plugins/profile/*/*.pt.trace.json")
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert any("convolution" in name for name in names)
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "costliest operators" in log
    assert "Self CPU" in log
