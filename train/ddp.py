"""A replica of the network on every rank, gradients averaged."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.group import Group
from train.strategy import Tensors, replica_backward, replica_logits
from train.task import Criterion

# Rank 0's statistics of BatchNorm are those that count, and `align` hands them on when they do. Later torch
# has another word for it, and warns of the first.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
NO_SYNC_OF_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False
}


class DDP(Group):
    sharded = False

    def prepare(self, model: nn.Module) -> nn.Module:
        on_gpu = self.device.type == "cuda"
        return DistributedDataParallel(
            model,
            device_ids=[self.device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
            **NO_SYNC_OF_BUFFERS,
        )

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
        with nullcontext() if exchange else cast(DistributedDataParallel, prepared).no_sync():
            return replica_backward(self, prepared, images, criterion, scaler, share)

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return replica_logits(self, network, images)

    def sum_parts(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def whole(self, tensors: Tensors) -> Tensors:
        return tensors
