"""How the ranks share a training run. The loop is written against `Strategy` and never asks which it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn

from deploy.errors import LabError
from train.precision import autocast
from train.ranks import Ranks
from train.task import Criterion

T = TypeVar("T")
Tensors = dict[str, torch.Tensor]


class Strategy(Protocol):
    ranks: Ranks
    device: torch.device
    precision: str
    """fp32, bf16 or fp16: of autocast."""
    replica: int
    """Which share of a batch this rank trains on, of how many."""
    replicas: int
    sharded: bool
    """Whether each rank holds, and saves, a part of every tensor only."""

    def shard(self, model: nn.Module) -> None:
        """Leave on this rank what it is to keep of the network; before the optimiser is built."""

    def prepare(self, model: nn.Module) -> nn.Module:
        """The module that the loop calls; its parameters are those of `model`, equal on all ranks.

        Called anew where `requires_grad` of a parameter has changed.
        """

    def backward(
        self,
        prepared: nn.Module,
        images: torch.Tensor,
        criterion: Criterion,
        scaler: torch.amp.GradScaler,
        *,
        share: float,
        exchange: bool,
    ) -> torch.Tensor:
        """Forward and backward of `share` x the loss, which is returned, detached.

        After a call with `exchange` the gradients of all calls since the last such call are those of the
        global batch on every rank.
        """

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Forward of what `shard` or `prepare` returned, for evaluation; on every rank."""

    def align(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers (BatchNorm's statistics), before evaluation."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over the replicas, elementwise; on every rank."""

    def sum_parts(self, values: torch.Tensor) -> torch.Tensor:
        """Over the parts of the network that different ranks hold; on every rank."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the same answer on every rank."""

    def stops(self, requested: bool) -> bool:
        """Whether all stop here and save: a rank was asked to, or the ranks are about to change."""

    def on_first(self, work: Callable[[], T]) -> T:
        """Rank 0 works, the others wait, however long; every rank gets the result or the error."""

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        """The replicas' values of equal shape, in order, on rank 0; None elsewhere."""

    def whole(self, tensors: Tensors) -> Tensors:
        """Every tensor of the network whole on the CPU, by name, on rank 0; called on every rank with its own
        part of them. Other ranks get what they need not use."""

    def close(self) -> None: ...


class Single:
    """One process."""

    replica, replicas, sharded = 0, 1, False

    def __init__(self, ranks: Ranks, device: torch.device, precision: str) -> None:
        self.ranks = ranks
        self.device = device
        self.precision = precision

    def shard(self, model: nn.Module) -> None:
        pass

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def backward(
        self,
        prepared: nn.Module,
        images: torch.Tensor,
        criterion: Criterion,
        scaler: torch.amp.GradScaler,
        *,
        share: float,
        exchange: bool,
    ) -> torch.Tensor:
        return replica_backward(self, prepared, images, criterion, scaler, share)

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return replica_logits(self, network, images)

    def align(self, model: nn.Module) -> None:
        pass

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def sum_parts(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def stops(self, requested: bool) -> bool:
        return requested

    def on_first(self, work: Callable[[], T]) -> T:
        return work()

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        return [values]

    def whole(self, tensors: Tensors) -> Tensors:
        return tensors

    def close(self) -> None:
        pass


def replica_backward(
    strategy: Strategy,
    prepared: nn.Module,
    images: torch.Tensor,
    criterion: Criterion,
    scaler: torch.amp.GradScaler,
    share: float,
) -> torch.Tensor:
    """`Strategy.backward` where every rank holds the whole network while it computes."""
    with autocast(strategy.device, strategy.precision):
        loss = criterion(prepared(images), slice(None)) * share
    scaler.scale(loss).backward()
    return loss.detach()


def replica_logits(strategy: Strategy, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """`Strategy.logits`, as above."""
    with autocast(strategy.device, strategy.precision):
        logits: torch.Tensor = network(images)
    return logits


def first_for_all(work: Callable[[], T], ranks: Ranks, broadcast: Callable[[list[Any]], list[Any]]) -> T:
    """`Strategy.on_first` by means of `broadcast`, which gives every rank rank 0's list."""
    outcome: list[Any] = [None, None]
    failure: BaseException | None = None
    if ranks.is_first:
        try:
            outcome[0] = work()
        except Exception as error:
            failure = error
            outcome[1] = str(error) if isinstance(error, LabError) else f"rank 0 failed: {error!r}"
    outcome = broadcast(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise LabError(outcome[1])
    return cast(T, outcome[0])
