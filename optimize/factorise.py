"""Low-rank factorisation: a layer becomes two or three thin ones where these cost less than it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from configs.compress import FactoriseConfig
from deploy.errors import LabError
from optimize.layer_clock import LayerClock
from optimize.stage import Context, require_finite, require_plain, save_changed
from optimize.widths import layer_sizes
from train.checkpoint import load_checkpoint, restore_model
from train.low_rank import full_ranks, is_pointwise, thin_layers
from train.structure import replace_module

Array = npt.NDArray[np.float64]
ITERATIONS = 5
"""Of the higher-order orthogonal iteration; the error has settled to four digits by then."""
Faster = Callable[[nn.Module, nn.Sequential, tuple[int, int]], tuple[float, float]]
"""(layer, its factors, height and width of its input) -> ms of the one and of the other."""


@dataclass(frozen=True)
class Site:
    """A layer that can be factorised."""

    name: str
    layer: nn.Module
    in_size: tuple[int, int]
    """Height and width of what goes in, px; 1 x 1 for a linear layer."""
    out_size: tuple[int, int]
    energies: tuple[Array, ...]
    """For each rank: the share of the squared singular values that the first 1, 2, ... hold."""

    def ranks(self, energy: float, round_to: int) -> list[int]:
        """The least that keep this share, rounded up to a multiple of `round_to`, if there are as many."""
        found = []
        for shares in self.energies:
            rank = int(np.searchsorted(shares, energy - 1e-12)) + 1
            found.append(min(len(shares), math.ceil(rank / round_to) * round_to))
        return found

    def macs(self, ranks: Sequence[int] | None = None) -> int:
        """Multiply-accumulates of one image, as it is or of the factors."""
        pixels_in, pixels_out = math.prod(self.in_size), math.prod(self.out_size)
        outputs, inputs, *kernel = cast(torch.Tensor, self.layer.weight).shape
        if ranks is None:
            return outputs * inputs * math.prod(kernel) * pixels_out
        if len(ranks) == 1:
            return ranks[0] * (inputs + outputs) * pixels_out
        into, out = ranks
        return inputs * into * pixels_in + out * (into * math.prod(kernel) + outputs) * pixels_out


@dataclass(frozen=True)
class FactorRecord:
    """Of one layer. `ms`: measured alone in ONNX Runtime, None where it was not."""

    ranks: list[int]
    full_ranks: list[int]
    error: float
    """||weight - product of the factors|| / ||weight||."""
    macs_before: int
    macs_after: int
    ms_before: float | None
    ms_after: float | None
    used: bool
    """False: measured, and not faster."""


@dataclass(frozen=True)
class FactoriseRecord:
    energy: float
    """That every factorised layer keeps at least, of each of its unfoldings."""
    macs_before: int
    """Of the convolutions and linear layers."""
    macs_after: int
    layers: dict[str, FactorRecord]
    predicted_saving_ms: float | None
    """The sum over the layers that were measured and factorised; what the network gains is in the record."""


def factorise_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`."""
    config, latency = context.config.factorise, context.config.latency
    if config.by == "latency" and not latency.seconds:
        raise LabError(
            "factorise.by=latency with latency.seconds=0 measures nothing: give it a second, or choose by "
            "energy or macs"
        )
    checkpoint = load_checkpoint(source)
    model = restore_model(checkpoint)
    clock = LayerClock(latency) if config.by == "latency" else None
    record = factorise(model, context.spec.size, config, clock)
    used = {name: layer.ranks for name, layer in record.layers.items() if layer.used}
    changes = [{"change": "factors", "layers": used}] if used else []
    save_changed(folder, checkpoint, model, [*checkpoint.structure, *changes])
    return asdict(record)


def factorise(
    model: nn.Module, size: int, config: FactoriseConfig, faster: Faster | None = None
) -> FactoriseRecord:
    """Replace layers of `model`, for images of size x size, in place by factors of fewer MACs.

    With `faster` only where they also take less time. Raises LabError, and leaves the network as it was,
    where no layer gets cheaper, where config.keep cannot be met, and for weights that are shared or not
    finite.
    """
    require_plain(model, "factorise")
    require_finite(model, "before factorise")
    sites, macs = factor_sites(model, size)
    energy = config.energy if config.by != "macs" else _energy_for(sites, macs, config)
    cheaper = {}
    for site in sites:
        ranks = site.ranks(energy, config.round_to)
        if site.macs(ranks) < site.macs():
            cheaper[site.name] = (site, ranks)
    if not cheaper:
        raise LabError(
            f"factorise: at energy {energy:g} and round_to {config.round_to} the factors of every layer "
            "cost as many MACs as the layer: lower factorise.energy"
        )
    records = {}
    for name, (site, ranks) in cheaper.items():
        factors, error = factors_of(site.layer, ranks)
        ms = faster(site.layer, factors, site.in_size) if faster is not None else None
        used = ms is None or ms[1] < ms[0]
        records[name] = FactorRecord(
            ranks=ranks,
            full_ranks=full_ranks(site.layer) or [],
            error=error,
            macs_before=site.macs(),
            macs_after=site.macs(ranks),
            ms_before=ms[0] if ms else None,
            ms_after=ms[1] if ms else None,
            used=used,
        )
        if used:
            replace_module(model, name, factors)
    chosen = [record for record in records.values() if record.used]
    return FactoriseRecord(
        energy=energy,
        macs_before=macs,
        macs_after=macs - sum(r.macs_before - r.macs_after for r in chosen),
        layers=records,
        predicted_saving_ms=sum((r.ms_before or 0) - (r.ms_after or 0) for r in chosen) if faster else None,
    )


def factor_sites(model: nn.Module, size: int) -> tuple[list[Site], int]:
    """The layers that can be factorised, and the MACs of all convolutions and linear layers."""
    sites, total = [], 0
    for name, (layer, in_size, out_size) in layer_sizes(model, size).items():
        site = Site(name, layer, in_size, out_size, ())
        total += site.macs()
        if full_ranks(layer) is not None:
            sites.append(Site(name, layer, in_size, out_size, _energies(layer)))
    return sites, total


def factors_of(layer: nn.Module, ranks: Sequence[int]) -> tuple[nn.Sequential, float]:
    """The layers that `train.low_rank.thin_layers` builds, with the weights closest to the layer's; and
    ||weight - their product|| / ||weight||.

    k x k: Tucker-2 (Kim et al. 2016, section 3.1). 1 x 1 and linear: the truncated singular value
    decomposition, half of each singular value in either factor. All in float64.
    """
    weight = cast(torch.Tensor, layer.weight).detach().double().numpy()
    factors = thin_layers(layer, ranks)
    if len(ranks) == 1:
        first, last = truncated_svd(weight.reshape(weight.shape[:2]), ranks[0])
        values, product = [first, last], last @ first
    else:
        into, core, out = tucker2(weight, ranks[0], ranks[1])
        values = [into.T, core, out]
        product = np.einsum("pqkl,op,iq->oikl", core, out, into, optimize=True)
    error = np.linalg.norm(weight - product.reshape(weight.shape)) / max(
        float(np.linalg.norm(weight)), 1e-300
    )
    with torch.no_grad():
        for module, value in zip(factors, values, strict=True):
            parameter = cast(torch.Tensor, module.weight)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)).view(parameter.shape))
        if layer.bias is not None:
            cast(torch.Tensor, factors[-1].bias).copy_(cast(torch.Tensor, layer.bias))
    return factors.train(layer.training), float(error)


def truncated_svd(weight: Array, rank: int) -> tuple[Array, Array]:
    """weight [outputs, inputs] ~ last [outputs, rank] @ first [rank, inputs]."""
    left, values, right = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(values[:rank])
    return root[:, None] * right[:rank], left[:, :rank] * root


def tucker2(weight: Array, into: int, out: int) -> tuple[Array, Array, Array]:
    """weight [outputs, inputs, k, k] ~ core [out, into, k, k] times bases [outputs, out], [inputs, into].

    Returned as (input basis, core, output basis), the bases orthonormal. Begins with the higher-order SVD and
    improves it by orthogonal iteration (De Lathauwer et al. 2000, algorithm 4.2).
    """
    out_basis = _leading(_unfold(weight, 0), out)
    in_basis = _leading(_unfold(weight, 1), into)
    for _ in range(ITERATIONS):
        out_basis = _leading(_unfold(np.einsum("oikl,iq->oqkl", weight, in_basis, optimize=True), 0), out)
        in_basis = _leading(_unfold(np.einsum("oikl,op->pikl", weight, out_basis, optimize=True), 1), into)
    core = np.einsum("oikl,op,iq->pqkl", weight, out_basis, in_basis, optimize=True)
    return in_basis, core, out_basis


def _energy_for(sites: Sequence[Site], macs: int, config: FactoriseConfig) -> float:
    """The most that every layer can keep if the network is to cost config.keep of its MACs."""

    def cost(energy: float) -> int:
        return macs - sum(
            max(0, site.macs() - site.macs(site.ranks(energy, config.round_to))) for site in sites
        )

    if cost(0.0) > config.keep * macs:
        raise LabError(
            f"factorise.keep {config.keep:g} of the MACs cannot be met: with ranks of {config.round_to} "
            f"(round_to) {cost(0.0) / macs:.3f} is left; keep more, or lower round_to"
        )
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= config.keep * macs else (low, middle)
    return low


def _energies(layer: nn.Module) -> tuple[Array, ...]:
    weight = cast(torch.Tensor, layer.weight).detach().double().numpy()
    if isinstance(layer, nn.Conv2d) and not is_pointwise(layer):
        # In the order of the ranks: inputs, outputs.
        squares = [_eigen(_unfold(weight, mode))[0] for mode in (1, 0)]
    else:
        squares = [np.linalg.svd(weight.reshape(weight.shape[:2]), compute_uv=False) ** 2]
    return tuple(np.cumsum(s) / max(float(s.sum()), 1e-300) for s in squares)


def _unfold(weight: Array, mode: int) -> Array:
    return np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)


def _eigen(unfolding: Array) -> tuple[Array, Array]:
    """Squared singular values, the largest first, and the left singular vectors."""
    values, vectors = np.linalg.eigh(unfolding @ unfolding.T)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _leading(unfolding: Array, rank: int) -> Array:
    return _eigen(unfolding)[1][:, :rank]
