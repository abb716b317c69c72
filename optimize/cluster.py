"""Weight sharing: the weights of a layer become a few values, and an index for each weight."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from configs.compress import ClusterConfig
from optimize.stage import Context, require_finite, require_plain, save_changed
from train.checkpoint import load_checkpoint, restore_model
from train.codebooks import share_weights

MAX_ITERATIONS = 300


@dataclass(frozen=True)
class SharedRecord:
    """Of one layer."""

    bits: int
    weights: int
    values: int
    """That some weight has: at most 2^bits."""
    error: float
    """||weight - shared|| / ||weight||."""


def cluster_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`."""
    checkpoint = load_checkpoint(source)
    model = restore_model(checkpoint)
    records = cluster(model, context.config.cluster)
    sizes = {name: 2**record.bits for name, record in records.items()}
    save_changed(folder, checkpoint, model, [*checkpoint.structure, {"change": "codebooks", "layers": sizes}])
    return {"layers": {name: asdict(record) for name, record in records.items()}}


def cluster(model: nn.Module, config: ClusterConfig) -> dict[str, SharedRecord]:
    """Let the weights of every convolution and linear layer of `model` share values, in place, by k-means.

    Biases and BatchNorm stay. Raises LabError for weights that are shared already, or not finite.
    """
    require_plain(model, "cluster")
    require_finite(model, "before cluster")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    ends = {
        next(name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)),
        [name for name, layer in layers.items() if isinstance(layer, nn.Linear)][-1],
    }
    records = {}
    for name, layer in layers.items():
        bits = config.first_last_bits if name in ends else config.bits
        weight = layer.weight.detach().numpy().copy()
        indices = kmeans(weight, 2**bits)
        share_weights(layer, 2**bits, torch.from_numpy(indices))
        shared = layer.weight.detach().numpy()
        error = np.linalg.norm(weight - shared) / max(float(np.linalg.norm(weight)), 1e-30)
        records[name] = SharedRecord(bits, weight.size, len(np.unique(indices)), float(error))
    return records


def kmeans(values: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.uint8]:
    """The cluster of each value, of at most 256, by Lloyd's algorithm from centres in equal steps over the
    range: Han et al. 2016, section 3.2, found that best for the few large weights.

    In one dimension clusters are intervals: after one sort an iteration looks up `size` borders. An empty
    cluster stays where it is. Deterministic.
    """
    ordered = np.sort(values, axis=None).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], size)
    before = None
    for _ in range(MAX_ITERATIONS):
        borders = (centres[1:] + centres[:-1]) / 2
        edges = np.concatenate([[0], np.searchsorted(ordered, borders), [len(ordered)]])
        if before is not None and np.array_equal(edges, before):
            break
        before = edges
        counts = np.diff(edges)
        centres = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centres)
    return np.searchsorted(borders, values, side="right").astype(np.uint8)
