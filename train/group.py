"""What strategies over torch.distributed share: the process group, votes and words between the ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from deploy.errors import LabError
from train.ranks import Ranks
from train.strategy import first_for_all

T = TypeVar("T")
MARGIN_S = 30.0
"""The collectives give up so much later than the watchdog, which leaves the stacks of every rank."""

_LOST = re.compile(r"Connection (closed|reset) by peer")
"""What gloo says on the ranks that are left."""


def is_lost_rank(error: BaseException) -> bool:
    """Whether it says no more than that another rank has ended. Horovod's errors, which its elastic mode goes
    on after, are of a class of their own."""
    return type(error) is RuntimeError and _LOST.search(str(error)) is not None


def lost_rank(error: BaseException, run_dir: Path) -> LabError:
    found = _LOST.search(str(error))
    return LabError(
        f"another rank has ended ({found[0] if found else error}): which and why is in the logs in "
        f"{run_dir / 'logs'}; the last checkpoint stands, go on with resume=true run_dir={run_dir}"
    )


class Group:
    """All ranks of the launcher: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, ranks: Ranks, device: torch.device, precision: str, timeout_s: float) -> None:
        self.ranks = ranks
        self.device = device
        self.precision = precision
        self.replica = ranks.rank
        self.replicas = ranks.world
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            timeout=timedelta(seconds=timeout_s + MARGIN_S),
            device_id=device if on_gpu else None,
        )
        # Python objects and flags go over gloo: off the GPU, and free to wait while rank 0 checks a data set.
        self.control: Any = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        # A vote is short, and must not wait a day for a rank whose machine is gone.
        self._votes: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s + MARGIN_S))

    def shard(self, model: nn.Module) -> None:
        pass

    def align(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, group=self._votes)
        return bool(votes.item())

    def stops(self, requested: bool) -> bool:
        return self.any(requested)

    def on_first(self, work: Callable[[], T]) -> T:
        def broadcast(outcome: list[Any]) -> list[Any]:
            dist.broadcast_object_list(outcome, src=0, group=self.control)
            return outcome

        return first_for_all(work, self.ranks, broadcast)

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        parts = [torch.empty_like(values) for _ in range(self.ranks.world)] if self.ranks.is_first else None
        dist.gather(values, parts)
        return parts

    def close(self) -> None:
        dist.destroy_process_group()
