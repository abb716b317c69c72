"""How long a bundle's variants take on a target, and what they draw, before one is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from deploy.bundle import Bundle
from deploy.cpu_model import CpuCeilings, cpu_layer_seconds
from deploy.errors import LabError
from deploy.graph_cost import Layer, read_layers
from deploy.latency_model import (
    Constants,
    Processor,
    Spread,
    dla_images_per_s,
    layer_seconds,
    watts,
    work_of,
)
from deploy.manifest import Variant
from deploy.processor import processor_of
from deploy.target import Target

_RESNET50_MACS = 4_089_184_256
_PUBLISHED = {"7.2", "8.0", "8.7", "8.9", "9.0"}
"""Compute capabilities of targets that figures are published for."""
_WALL_POWER = {"7.2", "8.7"}


@dataclass(frozen=True)
class Range:
    """Eight of ten published figures lay between `low` and `high` of their estimates."""

    low: float
    p50: float
    high: float


@dataclass(frozen=True)
class LayerEstimate:
    """`ms` is the p50."""

    name: str
    kind: str
    precision: str
    macs: int
    bytes: int
    ms: float


@dataclass(frozen=True)
class Estimate:
    variant: str
    target: str
    mode: str | None
    batch: int
    macs: int
    """Of one image."""
    latency_ms: Range
    """Of a query of `batch` images, host to device and back not counted."""
    images_per_s: Range
    dla_images_per_s: float | None
    """What the DLA cores could do beside the GPU; None without DLA or for another precision than INT8."""
    energy_mj: Range | None
    """At the wall, of an image, with the board's own draw; None where no energy is published."""
    layers: tuple[LayerEstimate, ...]
    notes: tuple[str, ...]


def estimate(
    bundle: Bundle,
    target: Target,
    *,
    mode: str | None = None,
    variants: Sequence[str] | None = None,
    batches: Sequence[int],
    ceilings: Path | None = None,
) -> list[Estimate]:
    """For each variant and batch. variants: those that the target runs, when None.

    mode: a power mode, the target's default when None. ceilings: the file that a CPU's estimate needs.
    Raises LabError: an unknown variant or mode, a precision that the target lacks, a batch below 1, ceilings
    that are missing or not asked for, a file whose layers cannot be read.
    """
    cpu = target.kind == "cpu"
    if cpu and ceilings is None:
        raise LabError(
            f"target {target.name}: its ceilings are measured, not written; measure them (python -m "
            "scripts.roofline --json roofline.json) and give them with --ceilings roofline.json"
        )
    if ceilings is not None and not cpu:
        raise LabError(f"--ceilings {ceilings}: only the target cpu takes them, not {target.name}")
    if not batches or min(batches) < 1:
        raise LabError(f"batch {list(batches)}: each must be at least 1")
    if cpu and mode:
        target.mode(mode)  # it has none, and says so
    chosen = [bundle.variant(name) for name in variants] if variants else runnable(bundle, target)
    for variant in chosen:
        refused = refusal(variant, target)
        if refused:
            raise LabError(refused)
    measured = CpuCeilings.read(ceilings) if ceilings else None
    found = []
    for variant in chosen:
        for batch in batches:
            layers = read_layers(bundle.path(variant.name), batch)
            if measured:
                found.append(_on_cpu(variant, target, batch, layers, measured))
            else:
                found.append(_on_gpu(variant, target, mode, batch, layers))
    return found


def runnable(bundle: Bundle, target: Target) -> list[Variant]:
    """Raises LabError, with the reasons, where the target runs none of the bundle's variants."""
    reasons = {variant.name: refusal(variant, target) for variant in bundle.variants}
    chosen = [variant for variant in bundle.variants if not reasons[variant.name]]
    if not chosen:
        raise LabError("; ".join(reason for reason in reasons.values() if reason))
    return chosen


def refusal(variant: Variant, target: Target) -> str | None:
    """Why the target does not run the variant, None where it does."""
    stored = variant.precision.removesuffix("-weights")  # 8-bit weights alone are computed in float
    computed = "fp32" if stored != variant.precision else stored
    if target.kind == "cpu" and variant.backend == "tensorrt":
        return f"variant {variant.name}: made for tensorrt, and target {target.name} is a CPU"
    if target.kind != "cpu" and variant.backend != "tensorrt" and variant.precision != "fp32":
        return f"variant {variant.name}: made for {variant.backend} on a CPU, not for {target.name}"
    return None if target.supports(computed) else target.lacks(computed)


def _on_gpu(
    variant: Variant, target: Target, mode: str | None, batch: int, layers: Sequence[Layer]
) -> Estimate:
    constants = Constants.read()
    processor = processor_of(target, mode)
    missing = sorted({x.precision for x in layers if x.macs} - set(processor.ops_per_clock_per_sm))
    if missing:
        known = target.supports(missing[0])
        raise LabError(
            f"target {target.name}: its rate in {missing[0]} is not known, so nothing can be estimated"
            if known
            else target.lacks(missing[0])
        )
    fitted = constants.latency
    tuned = layer_seconds(work_of(layers, processor), processor, fitted)
    middle = sqrt(fitted.untuned)
    total = float(tuned.sum())
    time = Range(total * constants.spread.low, total * middle, total * fitted.untuned * constants.spread.high)
    dla = None
    if variant.precision == "int8" and processor.dla_ghz:
        dla = dla_images_per_s(layers, processor, fitted, batch)
    return _result(
        variant,
        target,
        target.mode(mode).name,
        batch,
        layers,
        [float(seconds) * middle for seconds in tuned],
        time,
        dla,
        _energy(processor, constants, batch, layers, time)
        if target.compute_capability in _WALL_POWER
        else None,
    )


def _energy(
    processor: Processor, constants: Constants, batch: int, layers: Sequence[Layer], time: Range
) -> Range:
    ops = 2 * sum(layer.macs for layer in layers)

    def joules(seconds: float, factor: float) -> float:
        return factor * watts(processor, ops / seconds, constants.power) * seconds

    spread = constants.power_spread
    each = 1e3 / batch
    return Range(
        joules(time.low, spread.low) * each,
        joules(time.p50, 1.0) * each,
        joules(time.high, spread.high) * each,
    )


def _on_cpu(
    variant: Variant, target: Target, batch: int, layers: Sequence[Layer], ceilings: CpuCeilings
) -> Estimate:
    spread: Spread = Constants.read().cpu_spread
    seconds = [cpu_layer_seconds(layer, ceilings) for layer in layers]
    total = sum(seconds)
    time = Range(total * spread.low, total, total * spread.high)
    return _result(variant, target, None, batch, layers, seconds, time, None, None)


def _result(
    variant: Variant,
    target: Target,
    mode: str | None,
    batch: int,
    layers: Sequence[Layer],
    seconds: Sequence[float],
    time: Range,
    dla: float | None,
    energy: Range | None,
) -> Estimate:
    macs = sum(layer.macs for layer in layers) // batch
    return Estimate(
        variant=variant.name,
        target=target.name,
        mode=mode,
        batch=batch,
        macs=macs,
        latency_ms=Range(time.low * 1e3, time.p50 * 1e3, time.high * 1e3),
        images_per_s=Range(batch / time.high, batch / time.p50, batch / time.low),
        dla_images_per_s=dla,
        energy_mj=energy,
        layers=tuple(
            LayerEstimate(
                layer.name,
                layer.kind,
                layer.precision,
                layer.macs,
                layer.read_bytes + layer.write_bytes + layer.weight_bytes,
                spent * 1e3,
            )
            for layer, spent in zip(layers, seconds, strict=True)
        ),
        notes=tuple(_notes(target, macs, layers, energy)),
    )


def _notes(target: Target, macs: int, layers: Sequence[Layer], energy: Range | None) -> list[str]:
    notes = []
    if target.estimate_only:
        notes.append(f"{target.title} is for estimates alone: nothing is built for it.")
    if target.kind == "cpu":
        notes.append("The ceilings hold for the machine and the threads that they were measured with.")
    else:
        if target.compute_capability not in _PUBLISHED:
            notes.append(
                f"Extrapolation: no figure is published for a target of this generation ({target.title})."
            )
        if any(layer.depthwise for layer in layers):
            notes.append("Extrapolation: depthwise convolutions are in no published figure of the fit.")
        elif abs(macs / _RESNET50_MACS - 1) > 0.01:
            notes.append("Extrapolation: the formula was held against ResNet-50 at 224 px alone.")
    if energy is not None and any(layer.macs and layer.precision != "int8" for layer in layers):
        notes.append("Energy is published for INT8 alone; for other types it is the same draw an operation.")
    if energy is None:
        notes.append("No published energy for this class of device, so none is estimated.")
    return notes
