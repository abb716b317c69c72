"""Is this bundle, on this machine, what the training side says it is?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deploy.accuracy import agreement, classify, list_images, top1
from deploy.backends import open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.manifest import Variant
from deploy.target import DLA_BACKEND

Logits = NDArray[np.float32]

FLOAT_TOLERANCE = 1e-3
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
) -> Report:
    """Run every variant on the bundle's samples and compare with the outputs that came with it.

    First as written (`emulate`), where the logits must agree; then optimised, as it will be used, where the
    class must. With `images` (one sub-folder a class) the accuracy of each variant is reported as well.
    Raises LabError when the bundle cannot be opened, and for a file whose SHA-256 is wrong.
    """
    bundle = open_bundle(path)
    expected = bundle.expected()
    checks = [Check("files", "ok", f"{len(bundle.files)} files have their SHA-256")]
    for variant in bundle.variants:
        if reason := _cannot_run(variant, backend):
            checks.append(Check(variant.name, "info", f"not run: {reason}"))
            continue
        limit = tolerance(bundle, variant, expected)
        for emulate in (True, False):
            with open_runner(bundle, variant.name, backend, threads=threads, emulate=emulate) as runner:
                got = classify(runner, bundle.sample_paths(), bundle.input, _BATCH)
            checks.append(_compare(variant.name, got, expected[variant.name], limit, emulate))
    if images is not None:
        checks += _accuracy(bundle, images, backend, threads)
    return Report(tuple(checks))


def _cannot_run(variant: Variant, backend: str) -> str | None:
    """Why a backend is not asked to run a variant; None where it is."""
    if variant.precision == "bf16" and backend == "onnxruntime":
        return "ONNX Runtime has no BF16 on a CPU"
    if variant.backend == DLA_BACKEND and backend != DLA_BACKEND:
        return "its INT8 is in a calibration cache, which only TensorRT on a DLA reads"
    return None


def relative_error(got: Logits, expected: Logits) -> float:
    """The L2 norm of the difference over that of what was expected."""
    return float(np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), 1e-12))


def tolerance(bundle: Bundle, variant: Variant, expected: dict[str, Logits]) -> float:
    """The relative error of the logits that another machine may show.

    For a variant that is not FP32 it is what its number format itself changed. A last-bit difference between
    two CPUs' float sums turns a rounding here and there, and through the layers that grows to the size of
    rounding's own noise but not beyond: ResNet-18 with random weights, input changed by 1e-6: logits by 1 to
    3 %, quantisation noise 8 %. A wrong kernel goes well beyond it (saturated products: 20 %).

    Of several float variants the nearest one counts: a pruned network's INT8 file came from the pruned one.
    """
    floats = [v.name for v in bundle.variants if v.precision == "fp32"]
    if not floats or variant.precision == "fp32":
        return FLOAT_TOLERANCE
    nearest = min(relative_error(expected[variant.name], expected[name]) for name in floats)
    return max(FLOAT_TOLERANCE, nearest)


def _compare(name: str, got: Logits, expected: Logits, limit: float, emulate: bool) -> Check:
    error = relative_error(got, expected)
    same = round(agreement(got, expected) * len(got))
    held_to = f" (limit {limit:.1e})" if emulate else ""
    detail = f"relative error {error:.1e}{held_to}, same class on {same} of {len(got)} samples"
    # Not `error > limit`: a NaN must fail.
    good = error <= limit if emulate else not _changed(got, expected, limit).any()
    return Check(f"{name}, {'as written' if emulate else 'optimised'}", "ok" if good else "FAIL", detail)


def _changed(got: Logits, expected: Logits, limit: float) -> NDArray[np.bool_]:
    """Samples whose class changed, unless the two classes were closer than the tolerance: a tie."""
    sample = np.arange(len(got))
    lead = expected.max(axis=1) - expected[sample, got.argmax(axis=1)]
    finite = np.isfinite(got).all(axis=1)
    return np.asarray((lead > limit * np.linalg.norm(expected, axis=1)) | ~finite)


def _accuracy(bundle: Bundle, images: Path | str, backend: str, threads: int | None) -> list[Check]:
    found = list_images(images, bundle.input.class_names)
    labels = [label for _, label in found]
    checks = []
    for variant in (v for v in bundle.variants if _cannot_run(v, backend) is None):
        with open_runner(bundle, variant.name, backend, threads=threads) as runner:
            logits = classify(runner, [path for path, _ in found], bundle.input, _BATCH)
        recorded = variant.metrics.get("top1")
        beside = f"; the bundle records {recorded:.2%}" if isinstance(recorded, float) else ""
        detail = f"top-1 {top1(logits, labels):.2%} on {len(found)} images{beside}"
        checks.append(Check(f"{variant.name}, accuracy", "info", detail))
    return checks
