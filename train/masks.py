"""Weights of which some are zero and stay so: a mask on a layer's weight, as a parametrization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize


class Mask(nn.Module):
    """weight -> weight x mask. A masked entry has no gradient, so that what is zero there stays zero under
    momentum, weight decay and L1."""

    mask: torch.Tensor
    """bool, of the weight's shape; True is kept."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def mask_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Give these layers masks, in place, where they have none; nothing is masked by that."""
    for name in names:
        module = model.get_submodule(name)
        if mask_of(module) is None:
            parametrize.register_parametrization(module, "weight", Mask(cast(torch.Tensor, module.weight)))


def set_masks(model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
    """Mask these layers' weights, in place; what is masked becomes zero in the parameter too.

    `masks`: bool of the weight's shape by the layer's name, True is kept.
    """
    mask_layers(model, masks)
    for name, mask in masks.items():
        module = model.get_submodule(name)
        parametrization = mask_of(module)
        assert parametrization is not None
        parametrization.mask.copy_(mask)
        # The weight decays in the parameter: it must have no value there that the mask hides.
        weight_parameter(module).data.masked_fill_(~mask, 0.0)


def mask_of(module: nn.Module) -> Mask | None:
    """Of a layer's weight."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    chain = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return next((part for part in cast(nn.ModuleList, chain) if isinstance(part, Mask)), None)


def masked_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if mask_of(module) is not None]


def weight_parameter(module: nn.Module) -> torch.Tensor:
    """What the optimiser moves of a layer's weight: the weight itself where nothing is computed from it."""
    if not parametrize.is_parametrized(module, "weight"):
        return cast(torch.Tensor, module.weight)
    chain = cast(nn.ModuleDict, module.parametrizations)["weight"]
    return cast(torch.Tensor, chain.original)
