"""A replica on every rank, gradients averaged by Horovod: gloo between CPUs, NCCL between GPUs.

Horovod is no dependency: `scripts/install_horovod.sh` builds it, and this file alone imports it. Its
collectives find each other by name, so every one here has one: numbers that count the calls would differ on a
rank that is new.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from configs.schema import StrategyConfig
from deploy.errors import LabError
from train.group import MARGIN_S
from train.ranks import Ranks
from train.strategy import Tensors, first_for_all, replica_backward, replica_logits
from train.task import Criterion

T = TypeVar("T")


class Horovod:
    """The optimiser stays torch's own, so that a checkpoint may be continued with any strategy."""

    sharded = False

    def __init__(self, ranks: Ranks, device: torch.device, precision: str, config: StrategyConfig) -> None:
        self.ranks = ranks
        self.device = device
        self.precision = precision
        self.replica = ranks.rank
        self.replicas = ranks.world
        self._hvd = _start(config.timeout_s)
        if device.type == "cuda":
            if not self._hvd.nccl_built():
                raise LabError(
                    "device=cuda, but this Horovod was built without NCCL: install a CUDA toolkit "
                    "(nvcc) and run make horovod again, or use device=cpu"
                )
            torch.cuda.set_device(device)
        halves = config.compression == "fp16"
        self._compression = self._hvd.Compression.fp16 if halves else self._hvd.Compression.none
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._waiting: list[Callable[[], None]] = []
        self._exchanges = False

    def shard(self, model: nn.Module) -> None:
        pass

    def prepare(self, model: nn.Module) -> nn.Module:
        self._broadcast(model.state_dict())
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._send, name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
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
        self._exchanges = exchange
        loss = replica_backward(self, prepared, images, criterion, scaler, share)
        if exchange:
            self._finish()
        return loss

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return replica_logits(self, network, images)

    def _send(self, name: str, parameter: torch.Tensor) -> None:
        """Start to average a gradient as soon as the backward pass has made it."""
        if not self._exchanges:
            return
        assert parameter.grad is not None
        gradient = in_memory_order(parameter.grad)
        sent, context = self._compression.compress(gradient)
        handle = self._hvd.allreduce_async_(sent, name=f"gradient.{name}", op=self._hvd.Average)

        def receive() -> None:
            self._hvd.synchronize(handle)
            if sent is not gradient:
                gradient.copy_(self._compression.decompress(sent, context))

        self._waiting.append(receive)

    def _finish(self) -> None:
        waiting, self._waiting = self._waiting, []
        for receive in waiting:
            receive()

    def align(self, model: nn.Module) -> None:
        self._broadcast(dict(model.named_buffers()))

    def _broadcast(self, tensors: dict[str, torch.Tensor]) -> None:
        handles = [
            self._hvd.broadcast_async_(
                in_memory_order(tensor.detach()), root_rank=0, name=f"broadcast.{name}"
            )
            for name, tensor in sorted(tensors.items())
        ]
        for handle in handles:
            self._hvd.synchronize(handle)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self._hvd.allreduce(values, name="sum", op=self._hvd.Sum)
        return total

    def sum_parts(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def any(self, flag: bool) -> bool:
        votes = self._hvd.allreduce(torch.tensor([int(flag)]), name="any", op=self._hvd.Sum)
        return bool(votes.item())

    def stops(self, requested: bool) -> bool:
        votes = torch.tensor([requested, _members.changed], dtype=torch.int32)
        stop, changed = self._hvd.allreduce(votes, name="stops", op=self._hvd.Sum).tolist()
        # A request ends the run, whoever else comes.
        _members.regroup = bool(changed and not stop)
        return bool(stop or changed)

    def on_first(self, work: Callable[[], T]) -> T:
        return first_for_all(
            work, self.ranks, lambda outcome: self._hvd.broadcast_object(outcome, root_rank=0, name="outcome")
        )

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        parts = self._hvd.allgather(values[None], name="gather")
        return list(parts) if self.ranks.is_first else None

    def whole(self, tensors: Tensors) -> Tensors:
        return tensors

    def close(self) -> None:
        self._hvd.shutdown()


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous view of a dense tensor, such as one in channels_last; Horovod takes no other."""
    return tensor.permute(sorted(range(tensor.dim()), key=tensor.stride, reverse=True))


class _Members:
    """Which workers there are: what `hvd.elastic` calls a state.

    It holds nothing of the training, so there is nothing to save or send: the checkpoint is the state, and
    every worker reads it when the story begins anew.
    """

    changed = False
    """The launcher has told this worker that there will be others; it tells rank 0 alone."""
    regroup = False
    """All have agreed to stop for that."""
    news = ""
    """Why the story begins anew."""

    def on_hosts_updated(self, timestamp: int, update: int) -> None:
        self.changed = True

    def settle(self) -> None:
        """Before the ranks are given out anew: what comes after this counts for the next time."""
        self.changed = self.regroup = False

    restore = settle

    def sync(self) -> None:
        pass

    on_reset = sync


_members = _Members()
"""Horovod's ranks are one a process, and so is this."""


def run_elastic(config: StrategyConfig, story: Callable[[Ranks], T]) -> T:
    """`story` on the workers that there are, from its last checkpoint each time that they change.

    A lost worker ends the story where it is; a new one, or one that is to leave, ends it as a request to stop
    does, with a checkpoint. Raises LabError where horovodrun was not told to be elastic.
    """
    if os.environ.get("HOROVOD_ELASTIC") != "1":
        raise LabError(
            "strategy.elastic=true, but no elastic horovodrun started this process: "
            "horovodrun --gloo -np 2 --min-np 1 --host-discovery-script ./hosts.sh python -m train ..."
        )
    hvd = _start(config.timeout_s)
    from horovod.common.exceptions import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        HorovodInternalError,
        HostsUpdatedInterrupt,
    )

    @hvd.elastic.run  # type: ignore[untyped-decorator,unused-ignore]
    def turn(members: _Members) -> T:
        ranks = Ranks(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), launched=True, horovod=True)
        # Whoever is rank 0 now is the one that tells a mistake.
        os.environ["HOROVOD_RANK"] = str(ranks.rank)
        if members.news and ranks.is_first:
            # Not by the log: who is rank 0 now may have been another rank when that was set up.
            print(f"{members.news}: {ranks.world} go on from the last checkpoint", file=sys.stderr)
        try:
            outcome = story(ranks)
        except HorovodInternalError:
            members.news = "a worker was lost"
            raise
        if members.regroup:
            members.settle()
            members.news = "the workers have changed"
            raise HostsUpdatedInterrupt(skip_sync=True)
        return outcome

    result: T = turn(_members)
    return result


def _start(timeout_s: float) -> Any:
    """`horovod.torch`, initialised. Raises LabError where it is absent."""
    # A rank that is gone is seen at once. Where one hangs, the watchdog is to leave its stacks before this.
    os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"] = str(math.ceil(timeout_s + MARGIN_S))
    try:
        import horovod.torch as hvd  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError as error:
        raise LabError(
            f"strategy=horovod, but Horovod cannot be imported ({error}): build it for this torch with "
            "make horovod"
        ) from error
    hvd.init()
    return hvd
