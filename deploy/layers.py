"""The layers of a network, each timed by itself on this machine: the table that pruning by latency reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploy.backends import cpu_threads
from deploy.errors import LabError
from deploy.machine import describe_machine
from deploy.measure import measure_latency, percentile
from deploy.progress import progress

SCHEMA = 1
PASSES = 10
DEFAULT_SECONDS = 0.02


@dataclass(frozen=True)
class LayerTable:
    """FP32 latencies at batch 1. Any program may write such a file for a machine or a backend of its own."""

    backend: str
    backend_version: str
    threads: int
    seconds: float
    """Timed, of each layer."""
    machine: dict[str, Any]
    created: str
    latency_ms: Mapping[str, float]
    """By the name of the layer's file, which says kind, picture, input and output channels."""

    def write(self, path: Path) -> None:
        """Beside and renamed: whatever happens, the file is whole."""
        temporary = path.with_name(f".{path.name}.tmp")
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: Path) -> LayerTable:
        """Raises LabError where the file is none of this schema, or holds what is no time."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            schema = raw.pop("schema")
            if schema != SCHEMA:
                raise LabError(f"{path}: schema {schema!r}, this edgelab reads {SCHEMA}: measure again")
            missing = sorted({f.name for f in fields(cls)} ^ set(raw))
            if missing:
                raise ValueError(f"keys {missing}")
            bad = [name for name, ms in raw["latency_ms"].items() if not _is_time(ms)]
            if bad:
                raise ValueError(f"{bad[0]} takes {raw['latency_ms'][bad[0]]!r} ms")
            return cls(**raw)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabError(
                f"{path} is no table of layers ({error}): measure one with `python -m deploy layers`"
            ) from error


def time_layers(folder: Path, threads: int | None, seconds: float) -> LayerTable:
    """Latency at batch 1 of every ONNX file of a folder in ONNX Runtime on the CPU, each `seconds` long.

    The files take turns, several times, and the least p50 counts: what else a machine does makes it slow for
    seconds on end, and would make some layers look twice as dear as their neighbours.
    threads: all usable cores when None. Raises LabError.
    """
    files = sorted(folder.glob("*.onnx"))
    if not files:
        raise LabError(
            f"{folder}: no ONNX files there; give the folder of `python -m optimize.layer_latency`"
        )
    if not 0 < seconds <= 3600:
        raise LabError(f"seconds {seconds}: must be more than 0 and at most 3600")
    used = cpu_threads(threads)
    from deploy.ort import open_session

    share = seconds / PASSES
    latency_ms: dict[str, float] = {}
    with progress("layers", len(files) * PASSES) as advance:
        for file in files * PASSES:
            session, version = open_session(file, used, emulate=False)
            given = session.get_inputs()[0]
            call = partial(session.run, None, {given.name: np.ones(given.shape, np.float32)})
            samples = measure_latency(call, warmup_s=share / 4, min_duration_s=share, min_count=1)
            p50 = percentile(samples, 50)
            latency_ms[file.stem] = min(p50, latency_ms.get(file.stem, p50))
            advance(1)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return LayerTable("onnxruntime", version, used, seconds, describe_machine(), created, latency_ms)


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 < float(str(value)) < float("inf")
