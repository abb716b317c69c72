"""Layers as products of thin ones, for a network whose weights were factorised."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def full_ranks(layer: nn.Module) -> list[int] | None:
    """The ranks at which the factors hold all of the layer; None for a layer that is not factorised.

    [inputs, outputs] for a k x k convolution, [rank] for a 1 x 1 one and for a linear layer. Depthwise and
    grouped convolutions are thin already.
    """
    if isinstance(layer, nn.Linear):
        return [min(layer.in_features, layer.out_features)]
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    if is_pointwise(layer):
        return [min(layer.in_channels, layer.out_channels)]
    return [layer.in_channels, layer.out_channels]


def is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1)


def thin_layers(layer: nn.Module, ranks: Sequence[int]) -> nn.Sequential:
    """What takes the layer's place, with weights that are random.

    k x k: 1 x 1 to ranks[0] channels, k x k to ranks[1], 1 x 1 to the outputs (Kim et al. 2016, figure 2).
    1 x 1 and linear: two of its kind, with ranks[0] channels between. The last one has the bias.
    Raises ValueError where the ranks do not fit the layer.
    """
    full = full_ranks(layer)
    if (
        full is None
        or len(ranks) != len(full)
        or not all(0 < r <= most for r, most in zip(ranks, full, strict=True))
    ):
        raise ValueError(f"ranks {list(ranks)} for a {type(layer).__name__} that has {full}")
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, ranks[0], bias=False),
            nn.Linear(ranks[0], layer.out_features, bias=layer.bias is not None),
        )
    assert isinstance(layer, nn.Conv2d)
    last = nn.Conv2d(ranks[-1], layer.out_channels, 1, bias=layer.bias is not None)
    spatial = nn.Conv2d(
        layer.in_channels if is_pointwise(layer) else ranks[0], ranks[-1],
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False,  # type: ignore[arg-type]
    )  # fmt: skip
    if is_pointwise(layer):
        return nn.Sequential(spatial, last)
    return nn.Sequential(nn.Conv2d(layer.in_channels, ranks[0], 1, bias=False), spatial, last)
