"""Optimiser, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from configs.schema import AdamWConfig, OptimConfig


def build_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and filters only, not on the vectors of norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if isinstance(config, AdamWConfig):
        beta1, beta2 = config.betas
        return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=True)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )


def lr_at(step: int, steps_per_epoch: int, epochs: int, config: OptimConfig) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up, then a cosine to final_lr x lr
    (Goyal et al. 2017, section 2.2; Loshchilov and Hutter 2017, equation 5 with one period)."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
