"""Every rank holds a slice of each tensor and gathers one residual block at a time (FSDP2: Zhao et al. 2023,
in the per-parameter form of `torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from train.group import Group
from train.model import residual_blocks
from train.ranks import Ranks
from train.strategy import Tensors, replica_backward, replica_logits
from train.task import Criterion


class FSDP(Group):
    sharded = True

    def __init__(self, ranks: Ranks, device: torch.device, precision: str, timeout_s: float) -> None:
        super().__init__(ranks, device, precision, timeout_s)
        self._mesh = init_device_mesh(device.type, (ranks.world,))

    def shard(self, model: nn.Module) -> None:
        model.to(memory_format=torch.contiguous_format)  # slices of channels_last weights are not supported
        for block in residual_blocks(model):
            fully_shard(block, mesh=self._mesh, reshard_after_forward=True)
        # Also the outermost: when the moving average is evaluated, no backward pass lets go of its weights.
        fully_shard(model, mesh=self._mesh, reshard_after_forward=True)

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
        cast(FSDPModule, prepared).set_requires_gradient_sync(exchange)
        return replica_backward(self, prepared, images, criterion, scaler, share)

    def logits(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return replica_logits(self, network, images)

    def sum_parts(self, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def whole(self, tensors: Tensors) -> Tensors:
        # One at a time: no rank ever holds all of the network on its device.
        return {
            name: (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
            for name, value in tensors.items()
        }
