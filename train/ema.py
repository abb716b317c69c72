"""A moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from train.state import local


class Ema:
    """`model`, at first a copy of `source`, holds decay x average + (1 - decay) x weights after every step,
    BatchNorm's statistics too.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, source: nn.Module, decay: float) -> None:
        self.model = model.eval().requires_grad_(False)
        self._decay = decay
        ours, theirs = (
            {name: local(value) for name, value in net.state_dict().items() if not value.is_meta}
            for net in (self.model, source)
        )
        floats = [key for key, value in ours.items() if value.is_floating_point()]
        self._average = [ours[key] for key in floats]
        self._weights = [theirs[key] for key in floats]
        self._counts = [(ours[key], theirs[key]) for key in ours.keys() - set(floats)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, self._weights, 1 - decay)
        for ours, theirs in self._counts:
            ours.copy_(theirs)
