"""How the ranks share a training run. The loop is written against `Strategy` and never asks which it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema import StrategyConfig
from deploy.errors import LabError
from train.ranks import Ranks

T = TypeVar("T")
LAUNCHERS = {
    "ddp": "torchrun --standalone --nproc-per-node=2",
    "horovod": "horovodrun --gloo -np 2 python",
}
"""The commands that start the ranks of a strategy."""


class Strategy(Protocol):
    ranks: Ranks
    device: torch.device

    def prepare(self, model: nn.Module) -> nn.Module:
        """The module that the loop calls; its parameters are those of `model`, equal on all ranks."""

    def accumulating(self, prepared: nn.Module) -> AbstractContextManager[None]:
        """Around a backward pass whose gradients need not be exchanged yet."""

    def align(self, model: nn.Module) -> None:
        """Give every rank rank 0's buffers (BatchNorm's statistics), before evaluation."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all ranks, elementwise; on every rank."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says so; the same answer on every rank."""

    def on_first(self, work: Callable[[], T]) -> T:
        """Rank 0 works, the others wait, however long; every rank gets the result or the error."""

    def close(self) -> None: ...


class Single:
    """One process."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks = ranks
        self.device = device

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def accumulating(self, prepared: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def align(self, model: nn.Module) -> None:
        pass

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def on_first(self, work: Callable[[], T]) -> T:
        return work()

    def close(self) -> None:
        pass


class DDP:
    """A replica on every rank, gradients averaged: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, ranks: Ranks, device: torch.device, timeout_s: float) -> None:
        self.ranks = ranks
        self.device = device
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=timeout_s),
            device_id=device if on_gpu else None,
        )
        # Python objects and flags go over gloo: off the GPU, and free to wait while rank 0 checks a data set.
        self._control: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))

    def prepare(self, model: nn.Module) -> nn.Module:
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            model,
            device_ids=[self.device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
        )

    def accumulating(self, prepared: nn.Module) -> AbstractContextManager[None]:
        return cast(AbstractContextManager[None], cast(DistributedDataParallel, prepared).no_sync())

    def align(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, group=self._control)
        return bool(votes.item())

    def on_first(self, work: Callable[[], T]) -> T:
        def broadcast(outcome: list[Any]) -> list[Any]:
            dist.broadcast_object_list(outcome, src=0, group=self._control)
            return outcome

        return first_for_all(work, self.ranks, broadcast)

    def close(self) -> None:
        dist.destroy_process_group()


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


def build_strategy(config: StrategyConfig, ranks: Ranks, device: torch.device) -> Strategy:
    """The strategy that the config names. Raises LabError where it does not fit the launcher."""
    name = config.name
    if name == "auto":
        name = "horovod" if ranks.horovod else "ddp" if ranks.launched else "single"
    if name == "single" and ranks.world > 1:
        raise LabError(
            f"strategy=single, but {ranks.world} processes were started, which would train apart: "
            "use strategy=auto, or one process"
        )
    launcher = "horovodrun" if ranks.horovod else "torchrun" if ranks.launched else "no launcher"
    if name != "single" and launcher != LAUNCHERS[name].split()[0]:
        raise LabError(
            f"strategy={name}, but {launcher} started this process: "
            f"{LAUNCHERS[name]} -m train strategy={name} ..."
        )
    if name == "horovod":
        from train.horovod import Horovod

        return Horovod(ranks, device, config)
    return Single(ranks, device) if name == "single" else DDP(ranks, device, config.timeout_s)
