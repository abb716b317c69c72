"""The Measurement record: one JSON line of results.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from deploy.device_state import DeviceState
from deploy.errors import LabError
from deploy.loadgen_log import LoadGenResult
from deploy.measure import PERCENTILE_RULE, LatencySummary, Turn, summarise
from deploy.power import Energy

SCHEMA = 2

Inside = Literal["host", "in place", "image"]
"""What a query is: `host`: arrays in host memory to arrays in host memory; `in place`: as that, of inputs
that lie already where the device reads them; `image`: from image files."""
INSIDE_THE_CLOCK: dict[Inside, str] = {
    "host": "inference, host to host; no decoding or preprocessing",
    "in place": "inference of inputs that lie where the device reads them; no copy by the host, no decoding "
    "or preprocessing",
    "image": "reading, decoding and preprocessing of image files, and inference, one after the other",
}


@dataclass(frozen=True)
class Rule:
    """How it was measured. `count`: timed calls; `rounds`: in how many turns, interleaved with the others."""

    warmup_s: float
    duration_s: float
    count: int
    rounds: int
    percentile: str = PERCENTILE_RULE
    inside_the_clock: str = INSIDE_THE_CLOCK["host"]


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
class States:
    """The device before all timing, at both ends of each turn of this measurement, and after all timing.

    warnings: what makes the figures doubtful, a sentence each.
    """

    before: DeviceState
    during: tuple[DeviceState, ...]
    after: DeviceState
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """One variant, measured once. A row is about latency or about throughput, never both, or one of LoadGen.

    latency: of single queries, None in other rows. throughput_images_per_s: None in other rows.
    made_for: the backend that the file was written for; backend: the one that ran it.
    in_flight: queries at a time; they share the threads. inside: what a query is.
    peak_memory_mib: resident, of a fresh process that runs only this; None where the system does not say.
    device_memory_mib: what that process took of the GPU's own memory; None where there is none.
    latency_samples_ms: every timed query, in order, rounded to 0.1 us. turns: when; the queries of a turn
        follow each other at once.
    states, energy: None where nothing looked. loadgen: what LoadGen says, in its rows.
    """

    kind: Literal["latency", "throughput", "loadgen"]
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
    in_flight: int = 1
    inside: Inside = "host"
    device_memory_mib: float | None = None
    turns: tuple[Turn, ...] = ()
    states: States | None = None
    energy: Energy | None = None
    loadgen: LoadGenResult | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """One line without a line feed."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Measurement:
        """The inverse of :meth:`to_json`, of lines of schema 1 too. Raises LabError for anything else."""
        try:
            raw = json.loads(line)
        except ValueError as error:
            raise LabError(f"not JSON ({error})") from error
        if not isinstance(raw, dict) or type(raw.get("schema")) is not int:
            raise LabError("not a measurement: an object with a 'schema' is needed")
        if raw["schema"] > SCHEMA:
            raise LabError(f"schema {raw['schema']}, this edgelab reads up to {SCHEMA}; update edgelab")
        names = {f.name for f in fields(cls)}
        if raw["schema"] == 1:
            raw = {f.name: f.default for f in fields(cls) if f.name in _SINCE_2} | raw | {"schema": SCHEMA}
        if set(raw) != names:
            raise LabError(f"missing {sorted(names - set(raw))}, unknown {sorted(set(raw) - names)}")
        try:
            return cls(**raw | _parts(raw))
        except (TypeError, AttributeError, KeyError) as error:
            raise LabError(str(error)) from error


_SINCE_2 = {"in_flight", "inside", "device_memory_mib", "turns", "states", "energy", "loadgen"}
_LATENCY_SINCE_2 = {"p99_9_ms", "min_ms", "max_ms"}


def _parts(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that are no plain values. Raises TypeError or AttributeError for what they are not."""
    samples, latency = tuple(raw["latency_samples_ms"]), raw["latency"]
    if isinstance(latency, dict) and _LATENCY_SINCE_2.isdisjoint(latency):
        own = asdict(summarise(samples))
        latency = latency | {name: own[name] for name in _LATENCY_SINCE_2}
    return {
        "rule": Rule(**raw["rule"]),
        "latency": None if latency is None else LatencySummary(**latency),
        "accuracy": Accuracy(**raw["accuracy"]),
        "latency_samples_ms": samples,
        "turns": tuple(Turn(**turn) for turn in raw["turns"]),
        "states": None if raw["states"] is None else _states(**raw["states"]),
        "energy": None if raw["energy"] is None else Energy(**raw["energy"]),
        "loadgen": None if raw["loadgen"] is None else LoadGenResult.of(raw["loadgen"]),
    }


def _states(before: Any, during: Any, after: Any, warnings: Any) -> States:
    return States(_state(**before), tuple(_state(**one) for one in during), _state(**after), tuple(warnings))


def _state(throttled: Any, **rest: Any) -> DeviceState:
    return DeviceState(throttled=tuple(throttled), **rest)


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
