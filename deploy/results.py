"""The Measurement record: one JSON line of results.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from deploy.errors import LabError
from deploy.measure import PERCENTILE_RULE, LatencySummary

SCHEMA = 1


@dataclass(frozen=True)
class Rule:
    """How it was measured. `count`: timed calls; `rounds`: in how many turns, interleaved with the others."""

    warmup_s: float
    duration_s: float
    count: int
    rounds: int
    percentile: str = PERCENTILE_RULE
    inside_the_clock: str = "inference, host to host; no decoding or preprocessing"


@dataclass(frozen=True)
class Accuracy:
    """Of that same file with that same session. Fractions 0 to 1; None where no images were given.

    num_images: samples, of whatever kind. snr_db: of samples that are tensors, for each output the
    signal-to-noise ratio against FP32's in dB, 300 where the two are equal.
    """

    top1: float | None = None
    num_images: int | None = None
    agreement_with_fp32: float | None = None
    snr_db: dict[str, float] | None = None


@dataclass(frozen=True)
class Measurement:
    """One variant, measured once. A row is about latency or about throughput, never both.

    latency: of single queries, None in a throughput row. throughput_images_per_s: None in a latency row.
    made_for: the backend that the file was written for; backend: the one that ran it.
    peak_memory_mib: resident, of a fresh process that runs only this; None where the system does not say.
    latency_samples_ms: every timed query, in order, rounded to 0.1 us.
    """

    kind: Literal["latency", "throughput"]
    variant: str
    backend: str
    backend_version: str
    made_for: str
    precision: str
    batch: int
    threads: int
    machine: dict[str, Any]
    rule: Rule
    latency: LatencySummary | None
    throughput_images_per_s: float | None
    peak_memory_mib: float | None
    accuracy: Accuracy
    file_bytes: int
    sha256: str
    latency_samples_ms: tuple[float, ...]
    created: str
    schema: int = SCHEMA

    def to_json(self) -> str:
        """One line without a line feed."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Measurement:
        """The inverse of :meth:`to_json`. Raises LabError for anything else."""
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise LabError(f"not JSON ({error})") from error
        if not isinstance(raw, dict) or type(raw.get("schema")) is not int:
            raise LabError("not a measurement: an object with a 'schema' is needed")
        if raw["schema"] > SCHEMA:
            raise LabError(f"schema {raw['schema']}, this edgelab reads up to {SCHEMA}; update edgelab")
        names = {f.name for f in fields(cls)}
        if set(raw) != names:
            raise LabError(f"missing {sorted(names - set(raw))}, unknown {sorted(set(raw) - names)}")
        try:
            raw["rule"] = Rule(**raw["rule"])
            raw["latency"] = None if raw["latency"] is None else LatencySummary(**raw["latency"])
            raw["accuracy"] = Accuracy(**raw["accuracy"])
            raw["latency_samples_ms"] = tuple(raw["latency_samples_ms"])
        except TypeError as error:
            raise LabError(str(error)) from error
        return cls(**raw)


def append_measurements(path: Path | str, measurements: Sequence[Measurement]) -> None:
    """Add lines to a results file, which is made if need be. Raises LabError if it cannot be written."""
    target = Path(path)
    text = "".join(m.to_json() + "\n" for m in measurements)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise LabError(f"{target}: cannot be written ({error.strerror}); choose another file") from error


def read_measurements(path: Path | str) -> list[Measurement]:
    """Every line of a results file. Raises LabError with the line's number for one that is not whole."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; check the path") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Measurement.from_json(line))
        except LabError as error:
            raise LabError(f"{path}, line {number}: {error}; remove that line") from error
    return found
