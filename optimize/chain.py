"""A chain of stages: each in a folder of its own, done once, measured, and gone on with after a kill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.compress import OptimizeConfig
from deploy.bundle import file_sha256
from deploy.errors import LabError
from optimize.cluster import cluster_stage
from optimize.factorise import factorise_stage
from optimize.finetune import finetune
from optimize.int8 import quantize_stage
from optimize.lottery import lottery_stage
from optimize.prune import prune_stage
from optimize.qat import qat_stage
from optimize.sparsify import sparsify_stage
from optimize.stage import Context, Stage, StageRecord, file_of, measure_stage
from train.checkpoint import NAME, read_facts
from train.images import images_of
from train.result import write_json
from train.structure import find_change

RECORD = "record.json"
Say = Callable[[str], None]


STAGES: dict[str, Stage] = {
    "prune": prune_stage,
    "factorise": factorise_stage,
    "sparsify": sparsify_stage,
    "lottery": lottery_stage,
    "cluster": cluster_stage,
    "finetune": finetune,
    "qat": qat_stage,
    "quantize": quantize_stage,
}


def run_chain(config: OptimizeConfig, say: Say) -> list[StageRecord]:
    """Every stage in order; the records, the first one of the checkpoint that it began with.

    A stage whose record is there, of these settings and this input, is not run again. Raises LabError, also
    where the folder holds other stages.
    """
    source = Path(config.checkpoint)
    context = open_context(config, say)
    out = Path(config.out) if config.out else source.parent / "optimize"
    records: list[StageRecord] = []
    for number, name in enumerate(["original", *config.stages]):
        folder = out / f"{number}-{name}"
        settings = settings_of(config, name) if number else {}
        sha256 = file_sha256(source)
        record = StageRecord.read(folder / RECORD)
        if record is not None:
            require_same_stage(folder, record, settings, sha256)
            require_files(folder, record)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            say(f"{folder.name} ...")
            found = STAGES[name](source, folder, context) if number else {}
            first = records[0] if number else None
            record = measure_stage(name, settings, sha256, folder, context, first, found)
            write_json(folder / RECORD, asdict(record))
        records.append(record)
        if number:
            source = folder / NAME
    return records


def open_context(config: OptimizeConfig, say: Say) -> Context:
    """The images and the input of the run that made the checkpoint. Raises LabError."""
    path = Path(config.checkpoint)
    facts = read_facts(path)
    if find_change(facts.structure, "fake_quant") is not None:
        raise LabError(
            f"{path} has been through the stage qat, which must be the last: begin with the checkpoint "
            "before it"
        )
    data, splits = images_of(facts, path.parent / "data", config.data_root, say)
    return Context(config, path, facts.input_spec, data, facts.config.loader, splits)


def settings_of(config: OptimizeConfig, stage: str) -> dict[str, Any]:
    """All that decides what the stage leaves."""
    own = {} if stage == "quantize" else asdict(getattr(config, stage))
    return own | ({"calibration": asdict(config.calibration)} if stage in ("qat", "quantize") else {})


def require_same_stage(folder: Path, record: StageRecord, settings: dict[str, Any], sha256: str) -> None:
    """Raises LabError where what the folder holds was made from something else."""
    other = [
        f"{key}={record.settings.get(key)!r} there, {value!r} now"
        for key, value in settings.items()
        if record.settings.get(key) != value
    ]
    if record.source_sha256 != sha256:
        other.append("another checkpoint went in")
    if other:
        raise LabError(
            f"{folder} is of other settings ({'; '.join(other)}): give another out=..., or remove it and "
            "what follows it"
        )


def require_files(folder: Path, record: StageRecord) -> None:
    """Raises LabError where the files of a stage that is done are not there."""
    names = [file_of(record.stage)] + ([] if record.stage == "original" else [NAME])
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise LabError(
            f"{folder} has a record, but no {' and no '.join(missing)}: remove the folder, and the stage "
            "runs again"
        )


def format_chain(records: Sequence[StageRecord], max_drop: float) -> str:
    """A line a stage, and one for each that loses more than the gate allows."""
    head = ["stage", "parameters", "MACs", "MiB", "top-1", "points", "p50 ms", "speed-up"]
    cells = [head] + [
        [
            f"{number}-{r.stage}",
            f"{r.parameters / 1e6:.3f} M",
            f"{r.macs / 1e6:.1f} M",
            f"{r.onnx_bytes / 2**20:.2f}",
            f"{r.top1:.2%}",
            f"{-r.drop:+.2f}" if number else "",
            f"{r.latency_ms:.3f}" if r.latency_ms else "-",
            f"{r.speedup:.2f}x" if r.speedup else "-",
        ]
        for number, r in enumerate(records)
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    lines = [
        "  ".join(f"{c:{'<' if i == 0 else '>'}{widths[i]}}" for i, c in enumerate(line)).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines += [
        f"GATE: {number}-{r.stage} is {r.drop:.2f} points below the original, gate.max_drop is {max_drop:g}"
        for number, r in enumerate(records)
        if r.drop > max_drop
    ]
    return "\n".join(lines)
