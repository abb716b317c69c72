"""The last linear layer by itself: what goes into it, and how to fit it anew."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def last_linear(model: nn.Module) -> nn.Linear:
    """The layer that gives the logits: in every model of ours the last linear one."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@torch.inference_mode()
def head_inputs(model: nn.Module, batches: Iterable[Float32]) -> Float32:
    """float32 [n, d]: what the last linear layer sees in evaluation of images float32 [n, 3, size, size]."""
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append(inputs[0].float().cpu())

    handle = last_linear(model.eval()).register_forward_pre_hook(keep)
    try:
        for images in batches:
            model(torch.from_numpy(images))
    finally:
        handle.remove()
    return torch.cat(seen).numpy()


def fit_linear(
    features: Float32, labels: Int64, num_classes: int, weight_decay: float, max_steps: int = 500
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression: weight float32 [classes, d] and bias [classes].

    The one minimum of mean cross entropy + weight_decay / 2 x |weight|^2 on standardised features, found by
    L-BFGS in float64 from zero, so that no draw decides it. The result is for the plain features.
    """
    x = torch.from_numpy(features).double()
    mean, scale = x.mean(0), x.std(0, correction=0).clamp(min=1e-6)
    x = (x - mean) / scale
    y = torch.from_numpy(labels)
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_steps, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + weight_decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        plain = weight / scale
        return plain.float(), (bias - plain @ mean).float()
