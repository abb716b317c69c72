"""Optimiser, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from configs.schema import AdamWConfig, OptimConfig
from train.state import local
from train.transfer import lr_scales


def build_optimizer(config: OptimConfig, model: nn.Module, lr_decay: float = 1.0) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and filters only, not on the vectors of norms and biases.

    `lr_decay` is the factor of the learning rate from each stage to the one below it.
    """
    # Frozen ones too: without a gradient they do not move. Those on the meta device are another rank's.
    parameters = [p for p in model.parameters() if not p.is_meta]
    scales = lr_scales(model, lr_decay)
    groups = [
        {
            "params": [p for p in parameters if scales[p] == scale and (p.ndim > 1) == decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "decays": decays,
            "lr_scale": scale,
        }
        for scale in sorted(set(scales.values()), reverse=True)
        for decays in (True, False)
    ]
    # The fused SGD does not know sharded tensors.
    fused = not any(isinstance(p, DTensor) for p in parameters)
    if isinstance(config, AdamWConfig):
        beta1, beta2 = config.betas
        return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=fused)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused
    )


def lr_at(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up, then cosines to final_lr x lr
    (Goyal et al. 2017, section 2.2; Loshchilov and Hutter 2017, equation 5; and Huang et al. 2017).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    cycle = epochs * steps_per_epoch // config.cycles
    if step < warmup:
        return config.lr * (step + 1) / warmup
    first = min(step // cycle, config.cycles - 1) * cycle
    start = max(first, warmup)
    progress = (step - start) / max(1, first + cycle - start)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def add_l1(optimizer: torch.optim.Optimizer, weight: float) -> None:
    """Add the gradient of weight x sum |w| (its sign) for the parameters that decay."""
    for group in optimizer.param_groups:
        moving = [p for p in group["params"] if p.grad is not None]
        if group["decays"] and moving:
            gradients, values = [local(p.grad) for p in moving], [local(p.detach()) for p in moving]
            torch._foreach_add_(gradients, torch._foreach_sign(values), alpha=weight)
