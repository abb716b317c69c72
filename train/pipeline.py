"""Model parallelism: each rank holds some of the residual blocks and passes activations on (GPipe: Huang et
al. 2019). All ranks load the same images."""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from deploy.errors import LabError
from train.group import Group
from train.model import in_sequence
from train.precision import autocast
from train.ranks import Ranks
from train.strategy import Tensors
from train.task import Criterion


class Pipeline(Group):
    """As many stages as ranks. A batch goes through in `microbatches` parts, of which BatchNorm sees
    each alone, as with `accumulate`."""

    sharded = False

    def __init__(
        self, ranks: Ranks, device: torch.device, precision: str, timeout_s: float, microbatches: int
    ) -> None:
        super().__init__(ranks, device, precision, timeout_s)
        self.replica, self.replicas = 0, 1
        self._microbatches = microbatches
        self._last = ranks.world - 1
        self._schedules: dict[tuple[nn.Module, int], ScheduleGPipe] = {}
        self._loss: Criterion = lambda logits, rows: logits.sum()

    def shard(self, model: nn.Module) -> None:
        """The other ranks' blocks go to the meta device, where they take no memory."""
        for rank, units in enumerate(_stages(model, self.ranks.world)):
            if rank != self.ranks.rank:
                for unit in units:
                    unit.to("meta")

    def prepare(self, model: nn.Module) -> nn.Module:
        return _Stage(_stages(model, self.ranks.world)[self.ranks.rank], self.device, self.precision)

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
        if len(images) % self._microbatches:
            raise LabError(
                f"strategy.microbatches={self._microbatches} does not divide a batch of {len(images)} "
                "images: choose a divisor of batch_size / accumulate"
            )

        self._loss = lambda logits, rows: criterion(logits, rows) * (share / self._microbatches)
        losses: list[torch.Tensor] = []
        schedule = self._schedule(prepared, len(images))
        if self.ranks.rank == 0:
            schedule.step(images)
        elif self.ranks.rank == self._last:
            schedule.step(target=torch.arange(len(images), device=self.device), losses=losses)
        else:
            schedule.step()
        total = torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)
        dist.broadcast(total, src=self._last)
        return total.detach()

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The last stage's, on every rank."""
        stage = network if isinstance(network, _Stage) else cast(_Stage, self.prepare(network)).eval()
        rank = self.ranks.rank
        value = stage(images if rank == 0 else self._receive(rank - 1))
        if rank < self._last:
            self._send(value, rank + 1)
            return self._receive(self._last, everyone=True)
        self._send(value.float(), None)
        return cast(torch.Tensor, value.float())

    def align(self, model: nn.Module) -> None:
        pass  # each buffer is on one rank only

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values  # every rank counts the same images

    def sum_parts(self, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: torch.Tensor) -> list[torch.Tensor] | None:
        return [values] if self.ranks.is_first else None

    def whole(self, tensors: Tensors) -> Tensors:
        mine = {name: value.cpu() for name, value in tensors.items() if not value.is_meta}
        parts: list[Any] | None = [None] * self.ranks.world if self.ranks.is_first else None
        dist.gather_object(mine, parts, group=self.control)
        return {name: value for part in parts or [mine] for name, value in part.items()}

    def _schedule(self, stage: nn.Module, num_images: int) -> ScheduleGPipe:
        """Kept, because its first step finds out all shapes by messages between the ranks."""
        key = (stage, num_images)
        if key not in self._schedules:
            part = PipelineStage(stage, self.ranks.rank, self.ranks.world, self.device)
            # The schedule's own scaling would also divide what earlier passes have left in the gradients.
            self._schedules[key] = ScheduleGPipe(
                part,
                self._microbatches,
                loss_fn=lambda logits, rows: self._loss(logits, rows),
                scale_grads=False,
            )
        return self._schedules[key]

    def _send(self, value: torch.Tensor, to: int | None) -> None:
        """A tensor with its shape before it, to one rank or, from the last, to all."""
        shape = torch.tensor([value.ndim, *value.shape, *[0] * (4 - value.ndim)], device=self.device)
        for message in (shape, value.float().contiguous()):
            if to is None:
                dist.broadcast(message, src=self._last)
            else:
                dist.send(message, to)

    def _receive(self, source: int, *, everyone: bool = False) -> torch.Tensor:
        def take(message: torch.Tensor) -> torch.Tensor:
            if everyone:
                dist.broadcast(message, src=source)
            else:
                dist.recv(message, source)
            return message

        ndim, *shape = take(torch.zeros(5, dtype=torch.int64, device=self.device)).tolist()
        return take(torch.empty(shape[:ndim], device=self.device))


class _Stage(nn.Module):
    """Some consecutive units, which stay where they are in the network, so that names and buffers are its."""

    def __init__(self, units: list[nn.Module], device: torch.device, precision: str) -> None:
        super().__init__()
        self.units = nn.Sequential(*units)
        self._where = (device, precision)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(*self._where):
            value: torch.Tensor = self.units(_Contiguous.apply(images))
        return value.contiguous()


class _Contiguous(torch.autograd.Function):
    """Identity; what goes back to the stage before lies in memory as it was sent, not as channels_last."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous()


def _stages(model: nn.Module, count: int) -> list[list[nn.Module]]:
    """The network's units in `count` consecutive groups of about equal length."""
    units = in_sequence(model)
    if count > len(units):
        raise LabError(
            f"strategy=pipeline with {count} ranks, but the network has {len(units)} parts: "
            "use that many or less"
        )
    bounds = [round(part * len(units) / count) for part in range(count + 1)]
    return [units[first:last] for first, last in itertools.pairwise(bounds)]
