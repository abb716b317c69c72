"""What there is of a run folder, read for the report. Nothing here imports torch, which takes seconds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import LabError
from deploy.manifest import Bundle, Variant
from deploy.manifest_file import read_manifest
from deploy.results import Measurement, read_measurements
from deploy.table import Row, rows
from optimize.search import RECORD as SEARCH
from optimize.search import read_trials
from optimize.trials import Tried
from scripts.report_figures import Metrics

SOURCES = {
    "metrics.jsonl": "the training curves",
    "results.jsonl": "the measurements",
    "bundle/bundle.json": "the bundle's provenance",
    "config.yaml": "the configuration",
}
CLASSES = "classes.json"
CV = "cv.json"
CHAIN = "optimize/*/record.json"
_OF_TRAINING = ("metrics.jsonl", "config.yaml")


@dataclass(frozen=True)
class Stage:
    """One stage of a chain of compression, as `optimize.stage.StageRecord` has it."""

    name: str
    parameters: int
    macs: int
    onnx_bytes: int
    top1: float
    num_images: int
    drop: float
    """Points of top-1 lost against the chain's first checkpoint."""
    latency_ms: float | None
    speedup: float | None


@dataclass(frozen=True)
class Gate:
    """What the bundle says of one of its variants."""

    max_drop: float | None
    """Points of top-1; None where there were no labels, and the outputs' ratio of signal to noise judged."""
    found: str
    passed: bool

    @property
    def mark(self) -> str:
        return "" if self.passed else f"GATE: {self.found}, shipped all the same"


@dataclass(frozen=True)
class Run:
    """What there is of one run folder; `missing` names the files that are not there."""

    path: Path
    label: str
    metrics: Metrics
    measurements: list[Measurement]
    bundle: Bundle | None
    gates: dict[str, Gate]
    """Of the bundle's variants; empty for a bundle that no gate has judged."""
    config: str
    missing: tuple[str, ...]
    classes: dict[str, Any] | None
    """classes.json: each class of the last evaluation."""
    cv: dict[str, Any] | None
    """cv.json: the folds of a cross-validation."""
    search: list[Tried]
    chain: list[Stage]

    @property
    def rows(self) -> list[Row]:
        return rows(self.measurements)

    @property
    def left_out(self) -> frozenset[str]:
        """Variants that were measured, but that the bundle does not hold."""
        shipped = {v.name for v in self.bundle.variants} if self.bundle else None
        return frozenset(m.variant for m in self.measurements if shipped and m.variant not in shipped)

    @property
    def max_drop(self) -> float | None:
        """Points of top-1 that the bundle's gate allows."""
        return next((gate.max_drop for gate in self.gates.values()), None)

    @property
    def compared(self) -> list[Variant]:
        """The bundle's variants that were held against an original, output by output."""
        variants = self.bundle.variants if self.bundle else ()
        return [v for v in variants if v.precision != "fp32" and isinstance(v.metrics.get("snr_db"), dict)]

    def mark(self, variant: str) -> str:
        """What the gate has to say of a measured variant; empty where all is well."""
        if variant in self.left_out:
            return "below the gate: not in the bundle" if self.gates else "not in the bundle"
        return self.gates[variant].mark if variant in self.gates else ""


def read_run(folder: Path) -> Run:
    """Read what a run folder holds. Raises LabError when it holds nothing to report, or a broken file."""
    missing = tuple(name for name in SOURCES if not (folder / name).is_file())
    classes, cv = _read_record(folder / CLASSES), _read_record(folder / CV)
    search, chain = _read_search(folder), _read_chain(folder)
    if len(missing) == len(SOURCES) and (classes, cv) == (None, None) and not search and not chain:
        known = (*SOURCES, CLASSES, CV, SEARCH, CHAIN)
        raise LabError(f"{folder}: holds none of {', '.join(known)}; give the folder of a run")
    has = {name: name not in missing for name in SOURCES}
    bundle = read_manifest(folder / "bundle") if has["bundle/bundle.json"] else None
    # A cross-validation's folds and a search's chains have files of training in folders of their own.
    # So has a network that was trained elsewhere.
    untrained = bool(search) or (bundle is not None and any("onnx" in v.source for v in bundle.variants))
    expected = [name for name in SOURCES if not untrained or name not in _OF_TRAINING]
    expected = [] if cv is not None else expected
    return Run(
        path=folder,
        label=folder.resolve().name,
        metrics=_read_metrics(folder / "metrics.jsonl") if has["metrics.jsonl"] else [],
        measurements=read_measurements(folder / "results.jsonl") if has["results.jsonl"] else [],
        bundle=bundle,
        gates=_gates_of(bundle) if bundle else {},
        config=(folder / "config.yaml").read_text(encoding="utf-8") if has["config.yaml"] else "",
        missing=tuple(name for name in expected if not has[name]),
        classes=classes,
        cv=cv,
        search=search,
        chain=chain,
    )


def _read_metrics(path: Path) -> Metrics:
    found: Metrics = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break  # a run that is still writing; the line is whole the next time
        try:
            raw = json.loads(line)
            found.append({**raw, "kind": str(raw["kind"]), "step": int(raw["step"])})
        except (ValueError, TypeError, KeyError) as error:
            raise LabError(f"{path}, line {number}: {error!r}; remove that line") from error
    return found


def _read_record(path: Path) -> dict[str, Any] | None:
    """classes.json or cv.json; None where it is not there. Raises LabError where it is broken."""
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        required = {CLASSES: ("headline", "values", "classes", "pr_curves"), CV: ("folds", "metrics")}
        for key in required[path.name]:
            found[key]
    except (ValueError, TypeError, KeyError) as error:
        raise LabError(f"{path} cannot be read ({error!r}); remove it or write it anew") from error
    return found


def _read_search(folder: Path) -> list[Tried]:
    """The trials of search.json, in order; none where it is not there."""
    found = read_trials(folder, {})
    for number, one in enumerate(found, start=1):
        try:
            point = vars(one.point)
            for key in ("keep", "energy"):
                _number(point, key)
            for key in ("top1", "drop", "latency", "size", "macs", "parameters"):
                _number(vars(one), key)
        except ValueError as error:
            raise LabError(
                f"{folder / SEARCH}, trial {number}: {error}; remove the file, and search again"
            ) from error
    return found


def _read_chain(folder: Path) -> list[Stage]:
    """The stages whose records are there, in order."""
    found = []
    for path in folder.glob(CHAIN):
        number = path.parent.name.partition("-")[0]
        if number.isdecimal():
            found.append((int(number), _read_stage(path)))
    return [stage for _, stage in sorted(found, key=lambda one: one[0])]


def _read_stage(path: Path) -> Stage:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Stage(
            name=path.parent.name,
            parameters=int(_number(raw, "parameters")),
            macs=int(_number(raw, "macs")),
            onnx_bytes=int(_number(raw, "onnx_bytes")),
            top1=_number(raw, "top1"),
            num_images=int(_number(raw, "num_images")),
            drop=_number(raw, "drop"),
            latency_ms=None if raw["latency_ms"] is None else _number(raw, "latency_ms"),
            speedup=None if raw["speedup"] is None else _number(raw, "speedup"),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise LabError(
            f"{path} is no record of a stage ({error!r}): remove its folder, and the stage runs again"
        ) from error


def _gates_of(bundle: Bundle) -> dict[str, Gate]:
    found = {}
    for variant in bundle.variants:
        if "gate" not in variant.metrics:
            continue
        try:
            found[variant.name] = _gate_of(variant.metrics["gate"])
        except (ValueError, TypeError, KeyError) as error:
            raise LabError(
                f"{bundle.root}: the gate of {variant.name} cannot be read ({error!r}); "
                "write the bundle again"
            ) from error
    return found


def _gate_of(raw: Mapping[str, Any]) -> Gate:
    passed = raw["passed"] is True
    if "snr_db" in raw:
        return Gate(None, f"{_number(raw, 'snr_db'):.2f} dB from the original", passed)
    return Gate(_number(raw, "max_drop"), f"{_number(raw, 'drop'):.2f} points lost", passed)


def _number(raw: Mapping[str, Any], key: str) -> float:
    """Raises KeyError, or ValueError for anything else than a finite number."""
    value = raw[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r:.80}, must be a number")
    return value
