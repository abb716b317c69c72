"""Layers whose weights share a few values: a codebook that trains, and an index for every weight."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

MAX_SIZE = 256
"""Values of a codebook: an index is one byte."""


class Codebook(nn.Module):
    """A parametrisation: weight = codebook[indices] (Han et al. 2016, section 3).

    `codebook`, float32 [size], is the parameter; `indices`, uint8 of the weight's shape, a buffer.
    """

    indices: torch.Tensor

    def __init__(self, indices: torch.Tensor, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("indices", indices)

    def forward(self, codebook: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, _Lookup.apply(codebook, self.indices))

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        """The codebook closest to the weight at these indices: the mean of the weights that share a value;
        0 where none does."""
        return _means(weight, self.indices, self.size)


class _Lookup(torch.autograd.Function):
    """The gradient of a value is the mean of those of its weights, not the sum of section 3.3: a step is then
    the step of the weights projected on what shared values can follow, so that the learning rate of the
    training fits. Summed in float64, one after the other on a CPU, so that a run repeats bit for bit."""

    @staticmethod
    def forward(ctx: Any, codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.size = len(codebook)
        return codebook.index_select(0, indices.flatten().int()).view(indices.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (indices,) = ctx.saved_tensors
        return _means(gradients[0], indices, ctx.size), None


def share_weights(layer: nn.Module, size: int, indices: torch.Tensor | None = None) -> None:
    """Let the layer's weights share `size` values, in place: each the mean of the weights with its index.

    `indices`: uint8 of the weight's shape; None puts the values in equal steps over the range of the weights.
    Raises ValueError for another size than 2..256.
    """
    if not 2 <= size <= MAX_SIZE:
        raise ValueError(f"a codebook of {size} values; 2 to {MAX_SIZE} are possible")
    weight = cast(torch.Tensor, layer.weight).detach()
    if indices is None:
        low, high = weight.min(), weight.max()
        indices = ((weight - low) / (high - low).clamp_min(1e-30) * (size - 1)).round().to(torch.uint8)
    parametrize.register_parametrization(layer, "weight", Codebook(indices, size))


def codebooks(model: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(codebook, indices) of every layer that has them."""
    found = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            weight = cast(nn.ModuleDict, module.parametrizations)["weight"]
            book = cast(parametrize.ParametrizationList, weight)[0]
            if isinstance(book, Codebook):
                found[name] = (cast(torch.Tensor, weight.original).detach(), book.indices)
    return found


def _means(values: torch.Tensor, indices: torch.Tensor, size: int) -> torch.Tensor:
    """Mean of the values with each index, float32 [size]; 0 where there is none."""
    places = indices.flatten().long()
    total = values.new_zeros(size, dtype=torch.float64)
    total.index_add_(0, places, values.flatten().double())
    counts = values.new_zeros(size, dtype=torch.float64)
    counts.index_add_(0, places, torch.ones_like(places, dtype=torch.float64))
    return (total / counts.clamp_min(1)).to(values.dtype)
