"""What a search has found: the table of its front, and its variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deploy.bundle import Variant
from deploy.errors import LabError
from optimize.chain import RECORD
from optimize.quantize import S8_NAME, U8_NAME
from optimize.stage import StageRecord
from optimize.trials import Tried, front
from optimize.variants import Made
from train.checkpoint import Facts


def format_trials(tried: Sequence[Tried], max_drop: float) -> str:
    """A line a point, fastest first; `*` is the front."""
    best = front(tried)
    head = ["", "keep", "energy", "precision", "top-1", "points", "latency", "size", "MACs"]
    cells = [head] + [
        [
            "*" if one in best else "",
            f"{one.point.keep:g}",
            f"{one.point.energy:g}",
            one.point.precision,
            f"{one.top1:.2%}",
            f"{-one.drop:+.2f}",
            f"{one.latency:.2f}",
            f"{one.size:.3f}",
            f"{one.macs:.2f}",
        ]
        for one in sorted(tried, key=lambda one: one.latency)
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = ["  ".join(f"{c:>{w}}" for c, w in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "-" * len(lines[0]))
    lines.append("* no other is better in one of top-1, latency and size and as good in the rest")
    if not any(one.drop <= max_drop for one in best if one.latency < 1):
        lines.append(
            f"GATE: nothing that is faster than the original stays within gate.max_drop={max_drop:g} points"
        )
    return "\n".join(lines)


def variants_of(tried: Sequence[Tried], out: Path, facts: Facts) -> list[Made]:
    """The original network in FP32, then the front, INT8 in both forms."""
    original = (out / tried[0].folder).parent / "0-original"
    record = _record(original, out)
    source = {"model": facts.config.model.name, "step": facts.progress.step}
    fp32 = Variant("fp32", "", "fp32", "onnxruntime", record.parameters, source, {})
    made = [Made(fp32, original / "fp32.onnx", "fp32")]
    for one in front(tried):
        if one.point.precision == "fp32" and one.macs == 1:
            continue
        folder = out / one.folder
        form = "fp32" if one.point.precision == "fp32" else "int8"
        name = f"{one.point.network}-{one.point.precision}"
        about = {**source, "search": asdict(one.point)}
        metrics: dict[str, Any] = {"searched": asdict(one)}
        if form == "int8":
            metrics["keep_float"] = _record(folder, out).found["keep_float"]
        variant = Variant(name, "", form, "onnxruntime", one.parameters, about, metrics)
        if form == "fp32":
            made.append(Made(variant, folder / "fp32.onnx", name))
            continue
        cpu = replace(variant, name=f"{name}-cpu")
        made.append(Made(cpu, folder / U8_NAME, cpu.name))
        made.append(Made(replace(variant, backend="tensorrt"), folder / S8_NAME, cpu.name))
    return made


def _record(folder: Path, out: Path) -> StageRecord:
    record = StageRecord.read(folder / RECORD)
    if record is None:
        raise LabError(f"{folder} has lost its record: remove {out}, and search again")
    return record
