"""Sparsity: single weights become zero and stay so. Shapes stay, and so does the time of dense kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from configs.compress import SparsifyConfig
from deploy.errors import LabError
from optimize.rounds import START, begin, do_rounds
from optimize.stage import Context, save_changed
from train.checkpoint import NAME, load_checkpoint, restore_model
from train.masks import mask_of, set_masks
from train.structure import plain, with_masks

Masks = Mapping[str, torch.Tensor]
"""bool of the weight's shape by the layer's name; True is kept."""


@dataclass(frozen=True)
class SparsityRecord:
    """How sparse a network is, and what that saves on the disk. No kernel here is faster for it."""

    sparsity: float
    """Share of zeros in the weights of all convolutions and linear layers."""
    layers: dict[str, float]
    """The same of each."""
    dense: list[str]
    """Those without a mask."""
    two_four: list[str]
    """Those that TensorRT may use sparse kernels for: see `is_two_four`."""
    dense_bytes: int
    """Of all float32 tensors."""
    bitmask_bytes: int
    """Of the same tensors where each masked weight is written as one bit an entry and the float32 values that
    are not zero. Lossless; nothing here reads it."""


def cubic_schedule(start: float, end: float, rounds: int) -> list[float]:
    """The sparsity after each round: end + (start - end) (1 - i / rounds)^3 (Zhu and Gupta 2017, equation 1).

    Much goes early, where the weights are redundant, and little late.
    """
    return [end + (start - end) * (1 - i / rounds) ** 3 for i in range(1, rounds + 1)]


def choose_masks(
    model: nn.Module, sparsity: float, pattern: str, scope: str, dense: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Keep the weights of largest magnitude: exactly round(sparsity x count) of them go, of every layer
    (scope=uniform) or of all layers together (global). Of two alike the first one goes.

    What is masked already stays so, and counts, even where that is more. With pattern=2:4 only what that
    pattern takes may go, of the layers that can have it; at sparsity 0.5 all of it does. The model is left as
    it is. Raises LabError where a layer would be empty or is unknown.
    """
    layers = _chosen_layers(model, pattern, dense)
    scores = {name: _scores(module, pattern) for name, module in layers.items()}
    groups = [[name] for name in scores] if scope == "uniform" else [list(scores)]
    masks: dict[str, torch.Tensor] = {}
    for group in groups:
        joined = torch.cat([scores[name].flatten() for name in group])
        count = round(sparsity * len(joined))
        if pattern == "2:4":
            eligible = int((joined < math.inf).sum())
            count = min(round(2 * sparsity * eligible), eligible)
        kept = ~torch.isneginf(joined)
        kept[torch.sort(joined, stable=True).indices[:count]] = False
        parts = kept.split([scores[name].numel() for name in group])
        masks |= {name: part.reshape(scores[name].shape) for name, part in zip(group, parts, strict=True)}
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        raise LabError(
            f"sparsity {sparsity:.4g} with scope={scope} leaves no weight in {', '.join(empty)}: ask for "
            "less, use scope=uniform, or name them in dense"
        )
    return masks


def require_reachable(
    model: nn.Module, sparsity: float, pattern: str, scope: str, dense: Sequence[str]
) -> float:
    """The share that is masked already, of the layers that are not dense.

    Raises LabError where rounds that end at `sparsity` have nothing to do, or would empty a layer: before the
    hours of training.
    """
    masks = choose_masks(model, sparsity, pattern, scope, dense)
    scores = [_scores(model.get_submodule(name), pattern).flatten() for name in masks]
    present = float(torch.cat(scores).isneginf().double().mean())
    if present >= sparsity and pattern == "unstructured":
        raise LabError(
            f"sparsity {sparsity:.4g}: of the weights {present:.4g} are zero already; ask for more, or begin "
            "with the checkpoint before"
        )
    return min(present, sparsity)


def is_two_four(weight: torch.Tensor) -> bool:
    """Whether TensorRT may use its sparse kernels for a float [out, in, ...] weight: 4 divides the input
    channels, and of every 4 that follow each other at least 2 are zero, for each output channel and each
    place of the kernel (NVIDIA TensorRT Developer Guide, "Sparsity"). It does so on GPUs since Ampere, in
    FP16 and INT8, with the builder's flag SPARSE_WEIGHTS, and only where its timing finds them faster.
    """
    if not _divides(weight):
        return False
    return bool((weight.unflatten(1, (-1, 4)) != 0).sum(2).amax() <= 2)


def sparsity_record(model: nn.Module) -> SparsityRecord:
    weights = {
        name: cast(torch.Tensor, module.weight).detach() for name, module in _weight_layers(model).items()
    }
    masked = {name for name, module in _weight_layers(model).items() if mask_of(module) is not None}
    zeros = {name: int((weight == 0).sum()) for name, weight in weights.items()}
    tensors = plain(model).state_dict().values()
    dense_bytes = sum(4 * tensor.numel() for tensor in tensors if tensor.is_floating_point())
    saved = sum(4 * zeros[name] - math.ceil(weights[name].numel() / 8) for name in masked)
    return SparsityRecord(
        sparsity=sum(zeros.values()) / sum(weight.numel() for weight in weights.values()),
        layers={name: zeros[name] / weight.numel() for name, weight in weights.items()},
        dense=[name for name in weights if name not in masked],
        two_four=[name for name, weight in weights.items() if is_two_four(weight)],
        dense_bytes=dense_bytes,
        bitmask_bytes=dense_bytes - saved,
    )


def sparsify_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. Each round has a folder; killed, the stage goes on in the one it was in."""
    config = context.config.sparsify
    end = final_sparsity(config)
    first = restore_model(load_checkpoint(source))
    present = require_reachable(first, end, config.pattern, config.scope, config.dense)
    begin(folder, config, source)

    def change(checkpoint_file: Path, own: Path, share: float) -> None:
        checkpoint = load_checkpoint(checkpoint_file)
        model = restore_model(checkpoint)
        set_masks(model, choose_masks(model, share, config.pattern, config.scope, config.dense))
        save_changed(own, checkpoint, model, with_masks(checkpoint.structure, model), START)

    shares = cubic_schedule(present, end, config.rounds)
    rounds = do_rounds(source, folder, context, config.finetune, shares, change)
    record = sparsity_record(restore_model(load_checkpoint(folder / NAME)))
    return {**asdict(record), "rounds": [{"sparsity": r["share"], "top1": r["top1"]} for r in rounds]}


def final_sparsity(config: SparsifyConfig) -> float:
    """Of the layers that are not dense."""
    return 0.5 if config.pattern == "2:4" else config.sparsity


def _weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)
    }


def _chosen_layers(model: nn.Module, pattern: str, dense: Sequence[str]) -> dict[str, nn.Module]:
    layers = _weight_layers(model)
    first = next(name for name, module in layers.items() if isinstance(module, nn.Conv2d))
    names = [{"first": first, "head": list(layers)[-1]}.get(name, name) for name in dense]
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise LabError(
            f"dense={unknown}: the network has no such convolution or linear layer; it has first, head, "
            f"{', '.join(list(layers)[:4])}, ..."
        )
    chosen = {
        name: module
        for name, module in layers.items()
        if name not in names and (pattern == "unstructured" or _divides(cast(torch.Tensor, module.weight)))
    }
    if not chosen:
        raise LabError(f"with pattern={pattern} and dense={list(dense)} no layer is left to make sparse")
    return chosen


def _divides(weight: torch.Tensor) -> bool:
    """Whether the input channels of a group come in fours; of a depthwise convolution a group has one."""
    return weight.shape[1] % 4 == 0


def _scores(module: nn.Module, pattern: str) -> torch.Tensor:
    """Magnitudes; -inf is gone already, inf may not go."""
    scores = cast(torch.Tensor, module.weight).detach().abs()
    if pattern == "2:4":
        fours = scores.unflatten(1, (-1, 4))
        order = torch.sort(fours, dim=2, stable=True).indices
        largest = torch.zeros_like(fours, dtype=torch.bool).scatter_(2, order[:, :, 2:], True)
        scores = scores.masked_fill(largest.flatten(1, 2), math.inf)
    mask = mask_of(module)
    return scores if mask is None else scores.masked_fill(~mask.mask, -math.inf)
