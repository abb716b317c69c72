"""Ranks, strategies, and what must not depend on how many ranks there are."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from configs.schema import StrategyConfig
from data.loader import Batch
from deploy.errors import LabError
from tests.processes import run_ranks
from train.metrics import EvalCounts
from train.ranks import Ranks, choose_device
from train.strategy import Strategy, build_strategy

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, 1, launched=False)
TWO = Ranks(1, 2, 1, 2, launched=True)


def strategy_here() -> Strategy:
    return build_strategy(
        StrategyConfig("auto", timeout_s=60.0, compression="none", elastic=False), Ranks.from_environ(), CPU
    )


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


def images(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(count, 3, 8, 8, generator=generator)
    return Batch(pixels, torch.randint(5, (count,), generator=generator))


def gradient(strategy: Strategy, accumulate: int) -> torch.Tensor:
    """Of one global batch of 16, this rank's share of it in `accumulate` passes."""
    net = small_net()
    prepared = strategy.prepare(net)
    batch, ranks = images(16), strategy.ranks
    share = 16 // ranks.world // accumulate
    for part in range(accumulate):
        first = (part * ranks.world + ranks.rank) * share
        mine = slice(first, first + share)
        with nullcontext() if part == accumulate - 1 else strategy.accumulating(prepared):
            logits = prepared(batch.images[mine])
            (nn.functional.cross_entropy(logits, batch.labels[mine]) / accumulate).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def one_rank() -> dict[str, Any]:
    """All the promises of a strategy, in one process group."""
    strategy = strategy_here()
    rank = strategy.ranks.rank
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(rank))
    strategy.align(norm)
    told = ""
    try:
        strategy.on_first(fail)
    except LabError as error:
        told = str(error)
    answers = {
        "sum": strategy.sum(torch.tensor([1.0 + rank, 10.0])).tolist(),
        "any": (strategy.any(rank == 1), strategy.any(False)),
        "aligned": norm.running_mean.tolist(),
        "first": strategy.on_first(lambda: f"rank {rank} worked"),
        "error": told,
    }
    gradients = {accumulate: gradient(strategy, accumulate).numpy() for accumulate in (1, 2)}
    strategy.close()
    return {"answers": answers, "gradients": gradients}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(one_rank, 2)


def fail() -> None:
    raise LabError("no such folder")


def test_ddp_gives_the_gradient_of_one_process(two_ranks: list[dict[str, Any]]) -> None:
    expected = gradient(strategy_here(), 1).numpy()
    for got in two_ranks:
        np.testing.assert_allclose(got["gradients"][1], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got["gradients"][2], expected, rtol=1e-5, atol=1e-6)


def test_every_rank_gets_the_same_answers(two_ranks: list[dict[str, Any]]) -> None:
    expected = {
        "sum": [3.0, 20.0],
        "any": (True, False),
        "aligned": [0.0, 0.0],
        "first": "rank 0 worked",
        "error": "no such folder",
    }
    assert [got["answers"] for got in two_ranks] == [expected, expected]


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
    [("single", TWO, "strategy=auto"), ("ddp", ALONE, "torchrun")],
)
def test_a_strategy_that_does_not_fit_the_launcher_is_refused(name: Any, ranks: Ranks, remedy: str) -> None:
    with pytest.raises(LabError, match=remedy):
        build_strategy(StrategyConfig(name, timeout_s=60.0, compression="none", elastic=False), ranks, CPU)


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
