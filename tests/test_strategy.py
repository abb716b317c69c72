"""Ranks, strategies, and what must not depend on how many ranks there are."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from configs.schema import StrategyConfig
from data.loader import Batch
from deploy.errors import LabError
from tests.processes import run_ranks
from train.metrics import EvalCounts
from train.ranks import Ranks, choose_device
from train.state import local
from train.strategies import build_strategy
from train.strategy import Strategy

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, 1, launched=False)
TWO = Ranks(1, 2, 1, 2, launched=True)


def strategy_here(name: Any = "auto", microbatches: int = 1) -> Strategy:
    return build_strategy(strategy_config(name, microbatches), Ranks.from_environ(), CPU, "fp32")


def strategy_config(name: Any, microbatches: int = 1, compression: Any = "none") -> StrategyConfig:
    return StrategyConfig(
        name, timeout_s=60.0, microbatches=microbatches, compression=compression, elastic=False
    )


def small_net() -> nn.Module:
    """With the parts of a ResNet."""
    torch.manual_seed(0)
    parts = {
        "conv1": nn.Conv2d(3, 8, 3, padding=1),
        "bn1": nn.BatchNorm2d(8),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(2),
        "layer1": nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8)),
        "layer2": nn.Sequential(BasicBlock(8, 8)),
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(8, 5),
    }
    return nn.Sequential(OrderedDict(parts))


def images(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 16, 16, generator=generator)
    return Batch(pixels, torch.randint(5, (count,), generator=generator))


def gradient(strategy: Strategy, accumulate: int = 1, *, training: bool = False) -> dict[str, Any]:
    """Of one global batch of 8, this rank's share of it in `accumulate` passes.

    BatchNorm as in evaluation, since its statistics are of one rank's images, unless `training`.
    """
    net = small_net()
    strategy.shard(net)
    prepared = strategy.prepare(net).train(training)
    batch = images(8)
    share = 8 // strategy.replicas // accumulate
    total = torch.zeros(())
    for part in range(accumulate):
        first = (part * strategy.replicas + strategy.replica) * share
        mine = slice(first, first + share)
        labels = batch.labels[mine]
        total += strategy.backward(
            prepared,
            batch.images[mine],
            lambda logits, rows, labels=labels: nn.functional.cross_entropy(logits, labels[rows]),  # type: ignore[misc]
            torch.amp.GradScaler("cpu", enabled=False),
            share=1 / accumulate,
            exchange=part == accumulate - 1,
        )
    gradients = strategy.whole({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    squared = torch.stack([local(p.grad).square().sum() for p in net.parameters() if p.grad is not None])
    logits = strategy.logits(prepared.eval(), batch.images[:4])
    return {
        "gradients": {name: value.numpy() for name, value in gradients.items()},
        "norm": float(strategy.sum_parts(squared.sum()).sqrt()),
        "loss": float(strategy.sum(total)) / strategy.replicas,
        "logits": logits.detach().numpy() if not training else None,
    }


def one_rank(name: str) -> dict[str, Any]:
    """All the promises of a strategy, in one process group."""
    strategy = strategy_here(name)
    rank = strategy.ranks.rank
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(rank))
    strategy.align(norm)
    told = ""
    try:
        strategy.on_first(fail)
    except LabError as error:
        told = str(error)
    parts = strategy.gather(torch.tensor([rank]))
    answers = {
        "sum": strategy.sum(torch.tensor([1.0 + rank, 10.0])).tolist(),
        "any": (strategy.any(rank == 1), strategy.any(False)),
        "stops": (strategy.stops(rank == 1), strategy.stops(False)),
        "aligned": norm.running_mean.tolist(),
        "first": strategy.on_first(lambda: f"rank {rank} worked"),
        "error": told,
        "gathered": [part.item() for part in parts] if parts is not None else None,
    }
    found = {accumulate: gradient(strategy, accumulate) for accumulate in (1, 2)}
    if name == "pipeline":
        found[4] = gradient(strategy_like(strategy, microbatches=4), training=True)
    strategy.close()
    return {"answers": answers, "found": found}


def strategy_like(strategy: Strategy, microbatches: int) -> Strategy:
    """The same process group with other micro-batches."""
    other = copy.copy(strategy)
    vars(other).update(_microbatches=microbatches, _schedules={})
    return other


@pytest.fixture(scope="module", params=["ddp", "fsdp", "pipeline"])
def two_ranks(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    return request.param, run_ranks(one_rank, 2, request.param)


def fail() -> None:
    raise LabError("no such folder")


def assert_same_gradient(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got["gradients"].keys() == expected["gradients"].keys()
    for name, value in expected["gradients"].items():
        np.testing.assert_allclose(got["gradients"][name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_gradient_is_that_of_one_process(two_ranks: tuple[str, list[dict[str, Any]]]) -> None:
    expected = gradient(strategy_here())
    _, ranks = two_ranks
    for accumulate in (1, 2):
        assert_same_gradient(ranks[0]["found"][accumulate], expected)
        for got in ranks:
            assert got["found"][accumulate]["norm"] == pytest.approx(expected["norm"], rel=1e-4)
            assert got["found"][accumulate]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            np.testing.assert_allclose(got["found"][accumulate]["logits"], expected["logits"], atol=1e-5)


def test_microbatches_are_accumulated_passes(two_ranks: tuple[str, list[dict[str, Any]]]) -> None:
    name, ranks = two_ranks
    if name != "pipeline":
        pytest.skip("of the pipeline only")
    assert_same_gradient(ranks[0]["found"][4], gradient(strategy_here(), accumulate=4, training=True))


def test_every_rank_gets_the_same_answers(two_ranks: tuple[str, list[dict[str, Any]]]) -> None:
    name, ranks = two_ranks
    same = {
        "any": (True, False), "stops": (True, False), "first": "rank 0 worked", "error": "no such folder"
    }  # fmt: skip
    for rank, got in enumerate(ranks):
        # Along a pipeline all ranks see the same images, so there is one replica, whose parts differ.
        one = {"sum": [1.0 + rank, 10.0], "aligned": [rank, rank], "gathered": None if rank else [0]}
        two = {"sum": [3.0, 20.0], "aligned": [0.0, 0.0], "gathered": None if rank else [0, 1]}
        assert got["answers"] == same | (one if name == "pipeline" else two)


def test_ignored_labels_count_nowhere() -> None:
    counts = EvalCounts(3, CPU)
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]])
    counts.add(logits, torch.tensor([0, 1, 0, -1]))
    result = counts.result()
    assert (result.num_images, result.top5) == (3, 1.0)
    assert result.top1 == pytest.approx(2 / 3)
    assert result.confusion.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("name", "ranks", "remedy"),
    [
        ("single", TWO, "strategy=auto"),
        ("ddp", ALONE, "torchrun"),
        ("fsdp", ALONE, "torchrun"),
        ("pipeline", ALONE, "torchrun"),
    ],
)
def test_a_strategy_that_does_not_fit_the_launcher_is_refused(name: Any, ranks: Ranks, remedy: str) -> None:
    with pytest.raises(LabError, match=remedy):
        build_strategy(strategy_config(name), ranks, CPU, "fp32")


def test_half_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(LabError, match="WORLD_SIZE"):
        Ranks.from_environ()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(LabError, match="--nproc-per-node=1"):
        choose_device("auto", TWO)
    assert choose_device("cpu", TWO) == CPU
