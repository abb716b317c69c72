"""What makes a channel matter: scores over all layers that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from deploy.errors import LabError
from optimize.widths import ChannelGroups

Scores = Mapping[str, torch.Tensor]
"""How much each channel of each group matters, float [channels]."""


def channel_scores(
    model: nn.Module,
    groups: ChannelGroups,
    importance: str,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    seed: int,
) -> dict[str, torch.Tensor]:
    """Of the channels of `model`, whose groups these are.

    taylor: what the loss would rise by, so that groups can be compared: see `loss_rises`. It reads `batches`,
    images float32 [n, 3, size, size] and labels int64 [n]. The others by torch-pruning's estimators, with a
    mean of 1 in each group: l1, l2: norms of the weights (Li et al. 2017); bn_scale: |gamma| (Liu et al.
    2017); random is the control.
    """
    if importance == "random":
        draws = torch.Generator().manual_seed(seed)
        return {name: torch.rand(width, generator=draws) * 2 for name, width in groups.widths.items()}
    if importance == "taylor":
        return loss_rises(model, groups, batches)
    estimators: dict[str, Callable[[], tp.importance.Importance]] = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "bn_scale": tp.importance.BNScaleImportance,
    }
    estimator = estimators[importance]()
    scores = {name: estimator(group) for name, group in groups.groups.items()}
    without = [name for name, score in scores.items() if score is None]
    if without:
        raise LabError(
            f"prune.importance={importance}: {len(without)} groups, such as that of {without[0]}, have no "
            "BatchNorm, as the factors of a layer have none: take l2 or taylor"
        )
    return {name: score.detach() for name, score in scores.items()}


def loss_rises(
    model: nn.Module, groups: ChannelGroups, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Mean over the images of half the squared slope of the loss along the channel (Liu et al. 2021, Group
    Fisher Pruning, equation 5): wherever a layer reads the channel it is scaled by one factor, and the slope
    is that of the loss by this factor at 1.

    One factor for all readers, so that a channel of a residual stream, which many layers read, matters for
    all of them. BatchNorm keeps its statistics. Raises LabError without images.
    """
    readers = {
        layer.module: layer.in_group
        for layer in groups.layers
        if layer.in_group is not None and not layer.depthwise
    }
    factors: dict[str, torch.Tensor] = {}

    def scale(module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        factor = factors[readers[module]]
        return (given[0] * factor.reshape(*factor.shape, *[1] * (given[0].ndim - 2)),)

    hooks = [module.register_forward_pre_hook(scale) for module in readers]
    sums = {name: torch.zeros(width) for name, width in groups.widths.items()}
    num_images = 0
    model.eval()
    try:
        for images, labels in batches:
            factors = {
                name: torch.ones(len(images), width, requires_grad=True)
                for name, width in groups.widths.items()
            }
            loss = F.cross_entropy(model(images), labels, reduction="sum")
            slopes = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
            for name, slope in zip(factors, slopes, strict=True):
                if slope is not None:
                    sums[name] += slope.square().sum(0)
            num_images += len(labels)
    finally:
        for hook in hooks:
            hook.remove()
    if not num_images:
        raise LabError("prune.importance=taylor: 0 images, at least 1 is needed; raise prune.num_images")
    return {name: total / (2 * num_images) for name, total in sums.items()}
