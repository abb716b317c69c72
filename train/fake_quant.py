"""Fake quantisers: a network in training that rounds as its INT8 file will, with gradients straight through.

Jacob et al. 2018, section 3; the gradient is that of Bengio et al. 2013: 1 within the range, 0 beyond it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

INPUT = "input_quantiser"
OUTPUT = "output_quantiser"
LEVELS = 127


class FakeQuant(nn.Module):
    """`scale` x an integer in -128..127, as QuantizeLinear and DequantizeLinear compute it.

    `scale`, float32 [], is a buffer. In training it moves by `momentum` towards that of each batch's largest
    magnitude; with 0 it stays as it was calibrated.
    """

    scale: torch.Tensor

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.active = True
        """Otherwise it hands on what comes in."""
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.active:
            return x
        x = x.float()  # under autocast too, where the scale would lose half of its digits
        if self.training and self.momentum:
            amax = x.detach().abs().amax()
            # A batch of zeros says nothing, and a scale of 0 divides by it.
            self.scale.lerp_(torch.where(amax > 0, amax / LEVELS, self.scale), self.momentum)
        return fake_quantise(x, self.scale, -LEVELS - 1)


class WeightFakeQuant(nn.Module):
    """A parametrisation: each output channel, the first axis, on 255 levels up to its largest magnitude.

    That scale commutes with the folding of BatchNorm, which multiplies a channel by one number.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        rest = tuple(range(1, weight.ndim))
        scale = weight.detach().abs().amax(rest, keepdim=True) / LEVELS
        return fake_quantise(weight, torch.where(scale > 0, scale, 1.0), -LEVELS)


def fake_quantise(x: torch.Tensor, scale: torch.Tensor, lowest: int) -> torch.Tensor:
    """float32: scale x clamp(rint(x / scale), lowest, 127), step for step as ONNX defines it.

    Not torch.fake_quantize_*: those multiply by 1 / scale, and have no kernel for torch.compile.
    """
    return cast(torch.Tensor, _FakeQuantise.apply(x, scale, lowest))


class _FakeQuantise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, lowest: int) -> torch.Tensor:
        integers = (x / scale).round_()
        ctx.save_for_backward((integers >= lowest) & (integers <= LEVELS))
        return integers.clamp_(lowest, LEVELS).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


def add_fake_quant(
    model: nn.Module, activations: Sequence[tuple[str, str]], weights: Sequence[str], momentum: float
) -> None:
    """Put them into the network, in place.

    `activations`: the module, and `input_quantiser` or `output_quantiser`, for each tensor; `weights`: the
    layers. They hang on the modules by hooks: the network keeps its classes, and every strategy its blocks.
    """
    for name, side in activations:
        module = model.get_submodule(name)
        if side not in (INPUT, OUTPUT) or hasattr(module, side):
            raise ValueError(f"{name or 'the network'} cannot have the quantiser {side!r}")
        module.register_module(side, FakeQuant(momentum))
        # Plain functions: a copy of the module, such as the moving average, then finds its own quantiser.
        if side == INPUT:
            module.register_forward_pre_hook(_quantise_input)
        else:
            module.register_forward_hook(_quantise_output)
    for name in weights:
        parametrize.register_parametrization(model.get_submodule(name), "weight", WeightFakeQuant())


def quantiser(model: nn.Module, name: str, side: str) -> FakeQuant:
    return cast(FakeQuant, getattr(model.get_submodule(name), side))


def set_active(model: nn.Module, active: bool) -> None:
    """Switch the quantisers of all activations."""
    for module in model.modules():
        if isinstance(module, FakeQuant):
            module.active = active


def _quantise_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (cast(FakeQuant, getattr(module, INPUT))(inputs[0]), *inputs[1:])


def _quantise_output(module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    return cast(torch.Tensor, cast(FakeQuant, getattr(module, OUTPUT))(output))
