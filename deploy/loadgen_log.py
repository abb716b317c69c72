"""What MLPerf's LoadGen writes of a test: its verdict and figures, and the answers it logged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import LabError

DETAIL = "mlperf_log_detail.txt"
ACCURACY = "mlperf_log_accuracy.json"
_MARK = ":::MLLOG "
_NS_PER_MS = 1e6
_MET = {
    "result_perf_constraints_met": "the latency's limit was not kept",
    "result_min_duration_met": "it ran shorter than was asked for",
    "result_min_queries_met": "it ran fewer queries than LoadGen asks for",
    "early_stopping_met": "too few queries to be sure of the percentile",
}
_SAMPLES_PER_S = (
    "result_samples_per_second", "result_completed_samples_per_sec", "result_qps_without_loadgen_overhead",
)  # fmt: skip
_PERCENTILES = ("50.00", "90.00", "95.00", "97.00", "99.00", "99.90")


@dataclass(frozen=True)
class LoadGenResult:
    """A test of performance as LoadGen judges it, with our model: no official MLPerf result.

    valid: LoadGen's verdict; reasons: why not. percentiles_ms: of queries, "50.00" to "99.90", by LoadGen's
    own rule: sorted[floor(p n)]. samples_per_s: completed (Offline, Server), or without the time between the
    queries (SingleStream); None for MultiStream. target_qps, target_latency_ms: what was asked of Server.
    logs: the folder of LoadGen's own files.
    """

    scenario: str
    version: str
    valid: bool
    reasons: tuple[str, ...]
    num_queries: int
    percentiles_ms: Mapping[str, float]
    mean_ms: float
    min_ms: float
    max_ms: float
    samples_per_s: float | None
    samples_per_query: int
    target_qps: float | None
    target_latency_ms: float | None
    logs: str

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> LoadGenResult:
        """From plain JSON. Raises TypeError for other fields."""
        return cls(**{**raw, "reasons": tuple(raw["reasons"])})


def read_detail(folder: Path) -> dict[str, Any]:
    """{key: value} of LoadGen's log, of a key that comes again the last; `errors` and `warnings` are lists.

    Raises LabError where it is not there, or breaks off before the verdict.
    """
    file = folder / DETAIL
    found: dict[str, Any] = {}
    errors, warnings = [], []
    for entry in _entries(file):
        found[entry["key"]] = entry["value"]
        if entry["metadata"]["is_error"]:
            errors.append(str(entry["value"]))
        if entry["metadata"]["is_warning"]:
            warnings.append(str(entry["value"]))
    return found | {"errors": errors, "warnings": warnings}


def read_result(folder: Path) -> LoadGenResult:
    """Of a test of performance. Raises LabError where the log is not whole."""
    log = read_detail(folder)
    if "result_validity" not in log:
        raise LabError(f"{folder / DETAIL}: breaks off before LoadGen's verdict; run the test again")
    scenario = str(log["effective_scenario"])
    of_query = "per_query_latency" if scenario == "MultiStream" else "latency"
    middle = "query_latency" if scenario == "MultiStream" else "latency"
    server = scenario == "Server"
    return LoadGenResult(
        scenario=scenario,
        version=str(log["loadgen_version"]).split(" ")[0],
        valid=log["result_validity"] == "VALID",
        reasons=_reasons(log),
        num_queries=int(log["result_query_count"]),
        percentiles_ms={p: log[f"result_{p}_percentile_{of_query}_ns"] / _NS_PER_MS for p in _PERCENTILES},
        mean_ms=log[f"result_mean_{middle}_ns"] / _NS_PER_MS,
        min_ms=log[f"result_min_{middle}_ns"] / _NS_PER_MS,
        max_ms=log[f"result_max_{middle}_ns"] / _NS_PER_MS,
        samples_per_s=next((float(log[key]) for key in _SAMPLES_PER_S if key in log), None),
        samples_per_query=int(log["effective_samples_per_query"]),
        target_qps=float(log["effective_target_qps"]) if server else None,
        target_latency_ms=log["effective_target_latency_ns"] / _NS_PER_MS if server else None,
        logs=str(folder),
    )


def read_classes(folder: Path) -> dict[int, int]:
    """{index of the sample: the class that was answered} of a test of accuracy.

    Each answer is the eight bytes of a little-endian integer, which LoadGen writes in hexadecimal.
    Raises LabError where the file is not whole.
    """
    file = folder / ACCURACY
    try:
        return {
            int(entry["qsl_idx"]): int.from_bytes(bytes.fromhex(entry["data"]), "little")
            for entry in json.loads(file.read_text(encoding="utf-8"))
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{file}: cannot be read as LoadGen's answers ({error}); run the test again"
        ) from error


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)]
    except (OSError, ValueError) as error:
        raise LabError(f"{file}: cannot be read as LoadGen's log ({error}); run the test again") from error


def _reasons(log: Mapping[str, Any]) -> tuple[str, ...]:
    """What was not met, and LoadGen's own words."""
    if log["result_validity"] == "VALID":
        return ()
    met = [words for key, words in _MET.items() if log.get(key) is False]
    said = " ".join(str(log.get("result_invalid_reason", "")).split())
    return tuple(text for text in (*met, said, *log["errors"]) if text)
