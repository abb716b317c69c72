"""Any float network and some samples to its files: FP32, INT8 for TensorRT and for a CPU, FP16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import onnx

from configs.quantize import CalibrationMethod
from deploy.errors import LabError
from deploy.progress import watched
from optimize.calibrate import calibrate_feeds
from optimize.files import write_bytes, write_model
from optimize.foreign import Foreign, fix_dims
from optimize.foreign_half import half_precision
from optimize.foreign_sensitivity import Closeness, Feed, FloatPlan, answers, closeness, plan_float, worst
from optimize.qdq import NumberFormat, emit
from optimize.qdq_lint import lint
from optimize.quantize import CHECKED_IMAGES, S8_NAME, SCALES_NAME, U8_NAME, feed_mismatches
from optimize.sensitivity import weighted_nodes

FP32_NAME = "fp32.onnx"
FP16_NAME = "fp16.onnx"
PRECISIONS = ("int8", "fp16")
NUM_RANKED = 8
"""Samples on which each layer is tried alone: what ranks is a sum over all values of an output."""
NUM_GATED = 32
"""Samples on which the outputs of a mixture are held against those of the float network."""


@dataclass(frozen=True)
class ForeignFiles:
    """What `quantize_foreign` wrote; None for a precision that was not asked for."""

    fp32: Path
    int8: Path | None
    """S8, for TensorRT."""
    int8_cpu: Path | None
    """U8, for ONNX Runtime: the same integers."""
    fp16: Path | None
    record: dict[str, Any]
    """Of JSON types: `changes`, and of each precision what was done and how close its outputs are."""


def quantize_foreign(
    foreign: Foreign,
    feeds: Sequence[Feed],
    out: Path,
    *,
    method: CalibrationMethod,
    percentile: float,
    precisions: Sequence[str],
    min_snr_db: float | None,
    min_top1: float | None = None,
    seconds: float = 120.0,
    threads: int = 1,
    checks: Sequence[Feed] | None = None,
) -> ForeignFiles:
    """Write `fp32.onnx` and the files of `precisions` (`int8`, `fp16`) to `out`, with `scales.json` for INT8.

    feeds: the samples of calibration, in memory; each {input: array with a batch of 1}. Sides of the network
    that are free, but the batch, become theirs.
    min_snr_db: dB that every output of INT8 must keep against the float network; layers go back to float,
    the one that costs most first, until it does. min_top1: share, 0 to 1, of rows along an output's last axis
    whose largest value must stay where it was. None: not asked.
    seconds: bound of the time for trying layers one by one.
    checks: samples on which the outputs are compared; None: the last ones of `feeds`.

    Raises LabError for samples that do not fit, for a network that fails on one, for one without layers, and
    for an unknown precision; nothing is written then.
    """
    unknown = sorted(set(precisions) - set(PRECISIONS))
    if unknown:
        raise LabError(f"precisions: {', '.join(map(repr, unknown))} must be one of {', '.join(PRECISIONS)}")
    foreign = fix_dims(foreign, feeds)
    model = foreign.model
    if checks:
        fix_dims(foreign, checks)
    gated_on = list(checks or feeds)[-NUM_GATED:]
    _try(model, gated_on[:1], threads)
    models: dict[str, onnx.ModelProto] = {FP32_NAME: model}
    record: dict[str, Any] = {
        "changes": list(foreign.changes),
        "num_samples": len(feeds),
        "num_checks": len(gated_on),
    }
    texts = {}
    if "int8" in precisions:
        int8, scales_json, record["int8"] = _int8(
            model, feeds, gated_on, method, percentile, min_snr_db, min_top1, seconds, threads
        )
        models |= int8
        texts[SCALES_NAME] = scales_json
    if "fp16" in precisions:
        models[FP16_NAME], record["fp16"] = half_precision(model, feeds, gated_on, threads)
    for name, network in models.items():
        write_model(network, out / name)
    for name, text in texts.items():
        write_bytes(text.encode(), out / name)
    record["bytes"] = {name: (out / name).stat().st_size for name in models}
    written = {name: out / name for name in models}
    return ForeignFiles(
        written[FP32_NAME], written.get(S8_NAME), written.get(U8_NAME), written.get(FP16_NAME), record
    )


def _int8(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    gated_on: Sequence[Feed],
    method: CalibrationMethod,
    percentile: float,
    min_snr_db: float | None,
    min_top1: float | None,
    seconds: float,
    threads: int,
) -> tuple[dict[str, onnx.ModelProto], str, dict[str, Any]]:
    layers = weighted_nodes(model)
    if not layers:
        raise LabError(
            "quantise: the network has no Conv, Gemm or MatMul with a constant float32 weight, so INT8 has "
            "nothing to work on; ask for fp16"
        )

    def passes(close: Sequence[Closeness]) -> bool:
        least = worst(close)
        return (min_snr_db is None or least["snr_db"] >= min_snr_db) and (
            min_top1 is None or least["top1"] >= min_top1
        )

    scales = calibrate_feeds(model, watched("calibration", feeds), method, percentile)
    plan = plan_float(model, scales, spread(feeds, NUM_RANKED), gated_on, passes, threads, seconds)
    kept = frozenset(plan.keep_float)
    if len(kept) == len(layers):
        raise LabError(
            f"quantise: no mixture of INT8 and float keeps min_snr_db={min_snr_db} and min_top1={min_top1} "
            f"(all in INT8: {plan.int8_snr_db:.1f} dB); lower them, give more samples, or try another method "
            "of calibration"
        )
    s8, u8 = (emit(model, scales, form, kept) for form in get_args(NumberFormat))
    findings = lint(s8, kept)
    if findings:
        raise LabError("quantise: the network comes out unfit for TensorRT: " + "; ".join(findings))
    sample = gated_on[:CHECKED_IMAGES]
    if mismatches := feed_mismatches(s8, u8, sample):
        raise RuntimeError(f"{mismatches} integers differ between the two INT8 forms")
    outputs = [output.name for output in model.graph.output]
    close = closeness(outputs, answers(u8, gated_on, threads), answers(model, gated_on, threads))
    record = _record(plan, close) | {
        "method": scales.method,
        "num_tensors": len(scales.tensors),
        "num_layers": len(layers),
        "num_int8_layers": len(layers) - len(kept),
        "min_snr_db": min_snr_db,
        "min_top1": min_top1,
        "num_checked_samples": len(sample),
    }
    return {S8_NAME: s8, U8_NAME: u8}, scales.to_json(), record


def _record(plan: FloatPlan, close: Sequence[Closeness]) -> dict[str, Any]:
    return {
        "keep_float": list(plan.keep_float),
        "layers": [asdict(loss) for loss in plan.order],
        "int8_snr_db": plan.int8_snr_db,
        "seconds": plan.seconds,
        "outputs": [asdict(one) for one in close],
    }


def spread(feeds: Sequence[Feed], count: int) -> list[Feed]:
    """At most `count` samples, evenly from all."""
    step = max(1, len(feeds) / count)
    return [feeds[int(i * step)] for i in range(min(count, len(feeds)))]


def _try(model: onnx.ModelProto, feeds: Sequence[Feed], threads: int) -> None:
    try:
        answers(model, feeds, threads)
    except Exception as error:  # ONNX Runtime's share no base
        raise LabError(
            f"quantise: the network fails on a sample ({' '.join(str(error).split())[:300]}); check the "
            "values, such as token numbers beyond the vocabulary, and the sides that the network leaves free"
        ) from error
