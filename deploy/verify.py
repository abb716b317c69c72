"""Is this bundle, on this machine, what the training side says it is?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploy.accuracy import agreement, answer, classify, images_for, tensors_for, top1
from deploy.backends import can_emulate, cannot_run, open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.manifest import Answers, Variant
from deploy.runner import Runner
from deploy.score import score
from deploy.tensors import Tensors

Logits = NDArray[Any]

FLOAT_TOLERANCE = 1e-3
FP16_TOLERANCE = 2e-2
"""Some devices add up in FP16, not only multiply: ONNX Runtime on ARM is then 6e-3 off, measured on ResNet-18
and ResNet-50 with random weights on an emulated Cortex-A76."""
_BATCH = 32


@dataclass(frozen=True)
class Check:
    """One line of the report. `info` states a figure that has no right or wrong."""

    name: str
    status: Literal["ok", "FAIL", "info"]
    detail: str


@dataclass(frozen=True)
class Report:
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.status != "FAIL" for check in self.checks)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        return "\n".join(f"{c.status:<4}  {c.name:<{width}}  {c.detail}" for c in self.checks)


def verify(
    path: Path | str,
    images: Path | str | None = None,
    backend: str = "onnxruntime",
    threads: int | None = None,
    inputs: Path | None = None,
) -> Report:
    """Run every variant on the bundle's samples and compare with the outputs that came with it.

    First as written (`emulate`), where the outputs must agree, if the backend has that; then optimised, as it
    will be used, where the class must, and every output that names none within twice the limit. With `images`
    (one sub-folder a class) or `inputs` (an .npz file, for a bundle of tensors) the accuracy of each variant
    is reported too.
    Raises LabError when the bundle cannot be opened, and for a file whose SHA-256 is wrong.
    """
    bundle = open_bundle(path)
    answers, samples = bundle.answers(), bundle.tensors()
    checks = [Check("files", "ok", f"{len(bundle.files)} files have their SHA-256")]
    for variant in bundle.variants:
        if reason := cannot_run(variant, backend):
            checks.append(Check(variant.name, "info", f"not run: {reason}"))
            continue
        limits = tolerances(bundle, variant, answers)
        for emulate in (True, False) if can_emulate(backend) else (False,):
            with open_runner(bundle, variant.name, backend, threads=threads, emulate=emulate) as runner:
                got = answer_samples(runner, samples)
            checks.append(_compare(bundle, variant.name, got, answers[variant.name], limits, emulate))
    if images is not None:
        checks += _accuracy(bundle, images, backend, threads)
    if inputs is not None:
        checks += _scores(bundle, inputs, backend, threads)
    return Report(tuple(checks))


def answer_samples(runner: Runner, samples: Tensors) -> dict[str, NDArray[Any]]:
    """Of all samples, by output."""
    pieces = [answer(runner, batch.arrays) for batch in samples.batches(_BATCH)]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def relative_error(got: Logits, expected: Logits) -> float:
    """The L2 norm of the difference over that of what was expected."""
    wanted = expected.astype(np.float64)
    size = float(np.linalg.norm(wanted.ravel()))
    return float(np.linalg.norm((got - wanted).ravel()) / max(size, 1e-12))


def tolerances(bundle: Bundle, variant: Variant, answers: Mapping[str, Answers]) -> dict[str, float]:
    """For each output the relative error that another machine may show.

    For a variant that is not FP32 it is what its number format itself changed. A last-bit difference between
    two CPUs' float sums turns a rounding here and there, and through the layers that grows to the size of
    rounding's own noise but not beyond: ResNet-18 with random weights, input changed by 1e-6: logits by 1 to
    3 %, quantisation noise 8 %. A wrong kernel goes well beyond it (saturated products: 20 %).

    Of several float variants the nearest one counts: a pruned network's INT8 file came from the pruned one.
    """
    floats = [v.name for v in bundle.variants if v.precision == "fp32"]
    if not floats or variant.precision == "fp32":
        return {spec.name: FLOAT_TOLERANCE for spec in bundle.outputs}
    own = answers[variant.name]
    least = FP16_TOLERANCE if variant.precision == "fp16" else FLOAT_TOLERANCE
    return {
        spec.name: max(
            least, min(relative_error(own[spec.name], answers[name][spec.name]) for name in floats)
        )
        for spec in bundle.outputs
    }


def _compare(
    bundle: Bundle,
    name: str,
    got: Answers,
    expected: Answers,
    limits: Mapping[str, float],
    emulate: bool,
) -> Check:
    good, details = True, []
    for spec in bundle.outputs:
        ours, theirs, limit = got[spec.name], expected[spec.name], limits[spec.name]
        classes = spec.name == bundle.class_output
        error = relative_error(ours, theirs)
        # Two roundings of one number are each as far from it as the format allows.
        held_to = limit if emulate else 2 * limit
        detail = f"relative error {error:.1e}"
        if emulate or not classes:
            detail += f" (limit {held_to:.1e})"
            good &= error <= held_to  # not `error > limit`: a NaN must fail
        else:
            good &= not _changed(ours, theirs, limit).any()
        if classes:
            detail += f", same class on {round(agreement(ours, theirs) * len(ours))} of {len(ours)} samples"
        details.append(detail if len(bundle.outputs) == 1 else f"{spec.name}: {detail}")
    return Check(
        f"{name}, {'as written' if emulate else 'optimised'}", "ok" if good else "FAIL", "; ".join(details)
    )


def _changed(got: Logits, expected: Logits, limit: float) -> NDArray[np.bool_]:
    """Samples whose class changed, unless the two classes were closer than the tolerance: a tie."""
    sample = np.arange(len(got))
    lead = expected.max(axis=1) - expected[sample, got.argmax(axis=1)]
    finite = np.isfinite(got).all(axis=1)
    return np.asarray((lead > limit * np.linalg.norm(expected, axis=1)) | ~finite)


def _accuracy(bundle: Bundle, images: Path | str, backend: str, threads: int | None) -> list[Check]:
    found = images_for(bundle, images)
    assert bundle.input is not None
    labels = [label for _, label in found]
    checks = []
    for variant in (v for v in bundle.variants if cannot_run(v, backend) is None):
        with open_runner(bundle, variant.name, backend, threads=threads) as runner:
            logits = classify(runner, [path for path, _ in found], bundle.input, _BATCH)
        recorded = variant.metrics.get("top1")
        beside = f"; the bundle records {recorded:.2%}" if isinstance(recorded, float) else ""
        detail = f"top-1 {top1(logits, labels):.2%} on {len(found)} images{beside}"
        checks.append(Check(f"{variant.name}, accuracy", "info", detail))
    return checks


def _scores(bundle: Bundle, inputs: Path, backend: str, threads: int | None) -> list[Check]:
    found = tensors_for(bundle, inputs)
    fp32 = bundle.reference()
    with ExitStack() as stack:
        runners = {
            v.name: stack.enter_context(open_runner(bundle, v.name, backend, threads=threads))
            for v in bundle.variants
            if cannot_run(v, backend) is None
        }
        scores = score(runners, found.batches(_BATCH), bundle.class_output, fp32.name if fp32 else None)
    checks = []
    for name, one in scores.items():
        words = [] if one.top1 is None else [f"top-1 {one.top1:.2%}"]
        if one.agreement_with_fp32 is not None:
            words.append(f"the class of FP32 on {one.agreement_with_fp32:.2%}")
        words += [f"{output} {db:.1f} dB from FP32" for output, db in (one.snr_db or {}).items()]
        checks.append(Check(f"{name}, accuracy", "info", f"{', '.join(words)}, on {one.num_images} samples"))
    return checks
