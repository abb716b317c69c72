"""Variants to a bundle that was measured: verified, timed, judged by the gate, and only then put in place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from configs.quantize import BenchConfig, GateConfig
from data.calibration import choose_images
from data.index import Index
from deploy.bench import bench
from deploy.bundle import Bundle, Variant
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from deploy.results import Measurement, append_measurements
from deploy.target import Target
from deploy.verify import verify
from optimize.bundle import build_bundle, logits_of
from optimize.gate import judge
from optimize.placement import BACKEND, Task, check, summary
from optimize.rtx_build import COMPUTE_CAPABILITIES, is_installed
from optimize.variants import Made

_BATCH = 32
Judged = tuple[list[Variant], list[str]]
"""The variants that are shipped, and a line for each that falls through the gate."""
Found = TypeVar("Found")


class Build(Protocol):
    """Writes a bundle of some of the variants."""

    def __call__(self, path: Path, *, variants: Sequence[Variant]) -> Bundle: ...


@dataclass(frozen=True)
class Packing:
    """How a bundle is made and measured."""

    name: str
    spec: InputSpec
    val: Index
    """Local files, on which accuracy is measured, and of which the samples are taken."""
    bench: BenchConfig
    gate: GateConfig
    num_samples: int
    seed: int
    command: str
    targets: Sequence[Target] = ()
    """Devices that it is for."""


@dataclass(frozen=True)
class Packed:
    bundle: Bundle
    measurements: list[Measurement]
    marks: list[str]
    """A line for each variant that falls through the gate."""


def pack(made: Sequence[Made], how: Packing, out: Path, say: Callable[[str], None]) -> Packed:
    """`out/bundle` and `out/results.jsonl`. `made[0]` is what the others are held against.

    Measured before it is there, so that an older good bundle is only replaced by one that verifies.
    Raises LabError.
    """
    made = with_placement(made, say)
    build = partial(
        build_bundle,
        name=how.name,
        spec=how.spec,
        models={one.variant.name: one.model for one in made},
        answers={one.variant.name: one.answers for one in made if one.answers},
        artefacts={one.variant.name: one.artefacts for one in made},
        targets=how.targets,
        samples=choose_images(how.val, how.num_samples, how.seed),
        commands=[how.command],
    )

    def measure(draft: Bundle) -> tuple[list[Measurement], dict[str, float]]:
        labels = zip(how.val.paths, how.val.labels, strict=True)
        measurements = bench(
            draft,
            threads=how.bench.threads,
            batches=[min(how.bench.batches)],
            throughput_batches=[max(how.bench.batches)],
            seconds=how.bench.seconds,
            images=[(Path(path), int(label)) for path, label in labels],
        )
        top1 = {m.variant: m.accuracy.top1 for m in measurements if m.accuracy.top1 is not None}
        own = [one for one in made if one.same_as == one.variant.name]
        top1 |= {one.variant.name: top1_of(one.answers, how) for one in own if one.answers}
        return measurements, top1

    def judged(top1: dict[str, float]) -> Judged:
        return judge(made, top1, len(how.val), how.gate)

    return put_in_place(build, made, measure, judged, out, say)


def put_in_place(
    build: Build,
    made: Sequence[Made],
    measure: Callable[[Bundle], tuple[list[Measurement], Found]],
    judged: Callable[[Found], Judged],
    out: Path,
    say: Callable[[str], None],
) -> Packed:
    """See :func:`pack`. `measure` gives what there is to be judged beside the measurements."""
    with tempfile.TemporaryDirectory() as work:
        draft = build(Path(work, "bundle"), variants=[one.variant for one in made])
        verified = verify(draft.root)
        say(str(verified))
        if not verified.ok:
            raise LabError("the new bundle does not verify on this machine: see the FAIL above")
        measurements, found = measure(draft)
    shipped, marks = judged(found)
    bundle = build(out / "bundle", variants=shipped)
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    append_measurements(results, measurements)
    return Packed(bundle, measurements, marks)


def with_placement(made: Sequence[Made], say: Callable[[str], None]) -> list[Made]:
    """Those for TensorRT with what TensorRT-RTX makes of them among their metrics, for the first of its
    compute capabilities: half a second each. What that tells is told, and keeps nothing from being packed.
    """
    if any(one.variant.backend == BACKEND for one in made) and not is_installed():
        say("placement: not checked, TensorRT-RTX is not installed here (there is one for Linux on x86-64)")
        return list(made)
    return [_placed(one, say) if one.variant.backend == BACKEND else one for one in made]


def _placed(one: Made, say: Callable[[str], None]) -> Made:
    variant = one.variant
    kept = frozenset(variant.metrics.get("keep_float", ()))
    try:
        checked = check(
            Task(variant.name, one.model, variant.precision == "int8", kept), COMPUTE_CAPABILITIES[:1]
        )
    except LabError as error:
        say(f"placement: {variant.name}: {error}")
        return one
    say(f"placement: {variant.name}: {summary(checked)}")
    return replace(one, variant=replace(variant, metrics=variant.metrics | {"placement": asdict(checked)}))


def top1_of(model: Path, how: Packing) -> float:
    """Of a float32 file on all validation images."""
    found = 0
    for start in range(0, len(how.val), _BATCH):
        paths = how.val.paths[start : start + _BATCH]
        logits = logits_of(model, np.stack([preprocess(load_image(Path(p)), how.spec) for p in paths]))
        found += int((logits.argmax(1) == how.val.labels[start : start + _BATCH]).sum())
    return found / len(how.val)
