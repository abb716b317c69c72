"""What a network learns from a batch: the images that go in, and the loss of the logits that come out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from configs.schema import LossConfig, TrainConfig
from data.index import Int64
from data.loader import Batch

Rows = slice | torch.Tensor
"""Which rows of the batch some logits belong to: all, or those of a micro-batch."""
Criterion = Callable[[torch.Tensor, Rows], torch.Tensor]
"""(logits float [n, classes], rows) -> scalar, the mean over the n rows."""
Task = Callable[[Batch, np.random.Generator], tuple[torch.Tensor, Criterion]]
"""(batch, draws) -> (images for the network, criterion of its logits)."""


def classification(config: TrainConfig, class_counts: Int64, device: torch.device) -> Task:
    """Cross entropy or focal loss with label smoothing, class weights, mixup and CutMix.

    Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) pair each image with the one opposite it in the
    shuffled batch, with one weight a batch; where both are on, each batch draws one of them.
    `class_counts` int64 [classes] are those of the training images.
    """
    weights = class_weights(config.loss, class_counts).to(device)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        losses = F.cross_entropy(
            logits, labels, weight=weights, label_smoothing=config.label_smoothing, reduction="none"
        )
        if config.loss.name == "focal":
            # Lin et al. 2017, equation 5, with the class weight as its alpha.
            right = logits.float().softmax(1).gather(1, labels[:, None])[:, 0]
            losses = losses * (1 - right) ** config.loss.gamma
        # Not the weighted mean, whose divisor would depend on how the ranks share a batch.
        return losses.mean()

    def task(batch: Batch, draws: np.random.Generator) -> tuple[torch.Tensor, Criterion]:
        images, labels = batch
        kinds = [name for name, alpha in (("mixup", config.mixup), ("cutmix", config.cutmix)) if alpha]
        if not kinds:
            return images, lambda logits, rows: loss(logits, labels[rows])
        kind = kinds[int(draws.integers(len(kinds)))]
        if kind == "mixup":
            weight = float(draws.beta(config.mixup, config.mixup))
            images = images.mul(weight).add_(images.flip(0), alpha=1 - weight)
        else:
            images, weight = cut_and_mix(images, float(draws.beta(config.cutmix, config.cutmix)), draws)
        others = labels.flip(0)

        def mixed(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
            return weight * loss(logits, labels[rows]) + (1 - weight) * loss(logits, others[rows])

        return images, mixed

    return task


def class_weights(config: LossConfig, class_counts: Int64) -> torch.Tensor:
    """float32 [classes]: count to the power of -class_balance, with mean 1 over the training images, so that
    the learning rate keeps its meaning. All ones for class_balance 0."""
    raw = np.maximum(class_counts, 1).astype(np.float64) ** -config.class_balance
    mean = (raw * class_counts).sum() / class_counts.sum()
    return torch.tensor(raw / mean, dtype=torch.float32)


def cut_and_mix(
    images: torch.Tensor, weight: float, draws: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """Paste a box of the opposite images, of 1 - weight of the area before it is cut off at the borders; the
    weight that is left to the first labels."""
    height, width = images.shape[-2:]
    side = (1 - weight) ** 0.5
    centre_y, centre_x = draws.random(2)
    top, bottom = (round(height * min(1.0, max(0.0, centre_y + sign * side / 2))) for sign in (-1, 1))
    left, right = (round(width * min(1.0, max(0.0, centre_x + sign * side / 2))) for sign in (-1, 1))
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def draws_for(seed: int, step: int, part: int, replica: int) -> np.random.Generator:
    """The draws of one batch: a pure function of where it stands."""
    return np.random.Generator(np.random.Philox(key=[seed, step], counter=[0, part, replica, 1]))
