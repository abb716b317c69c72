"""Results files: what schema 2 holds comes back, and files of schema 1 still open."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from deploy.device_state import DeviceState
from deploy.errors import LabError
from deploy.loadgen_log import LoadGenResult
from deploy.measure import Turn
from deploy.power import Energy
from deploy.results import Measurement, States, append_measurements, read_measurements
from deploy.table import format_table, rows
from tests.test_deploy_measure import measurement

COOL = DeviceState({"gpu": 900.0}, {"tj": 45.5}, "MAXN", (), {"cpu0": 3})
HOT = DeviceState({"gpu": 600.0}, {"tj": 95.5}, "MAXN", ("thermal",), {"cpu0": 4})
LOADGEN = LoadGenResult(
    "Server", "6.0.17", False, ("too few queries",), 190,
    {"50.00": 2.2, "90.00": 3.4, "99.00": 4.0, "99.90": 4.6}, 2.4, 2.1, 4.6, 93.8, 1, 100.0, 15.0,
    "loadgen/int8-Server",
)  # fmt: skip
IN_2 = {"in_flight", "inside", "device_memory_mib", "turns", "states", "energy", "loadgen"}


def schema_1(m: Measurement) -> dict[str, object]:
    """The line that the first release wrote of it."""
    raw = asdict(m)
    old = {key: value for key, value in raw.items() if key not in IN_2} | {"schema": 1}
    old["latency"] = m.latency and {
        key: getattr(m.latency, key) for key in ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "cv")
    }
    return old


def full() -> list[Measurement]:
    states = States(COOL, (COOL, HOT), HOT, ("throttling set in: thermal",))
    energy = Energy("ina3221", "VDD_IN", {"VDD_IN": 9.5}, 4.5, 0.0125, 0.005, 10.0, 31)
    return [
        measurement(turns=(Turn(0.5, 0.0042, 2), Turn(1.5, 0.0022, 1)), states=states, inside="image"),
        measurement(
            kind="throughput", latency=None, latency_samples_ms=(), throughput_images_per_s=9.0, in_flight=4,
            energy=energy, device_memory_mib=80.5,
        ),
        measurement(kind="loadgen", latency=None, latency_samples_ms=(), loadgen=LOADGEN),
    ]  # fmt: skip


def test_everything_comes_back(tmp_path: Path) -> None:
    append_measurements(tmp_path / "r.jsonl", full())
    assert read_measurements(tmp_path / "r.jsonl") == full()


def test_a_file_of_schema_1_opens(tmp_path: Path) -> None:
    one = measurement()
    many = measurement(kind="throughput", latency=None, latency_samples_ms=(), throughput_images_per_s=7.0)
    path = tmp_path / "old.jsonl"
    path.write_text("".join(json.dumps(schema_1(m)) + "\n" for m in (one, many)))
    found = read_measurements(path)
    assert found == [one, many]  # the least and the most are told by its samples
    append_measurements(path, found)
    assert read_measurements(path) == [*found, *found]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 3}, "schema 3, this edgelab reads up to 2; update edgelab"),
        ({"states": {"before": {}}}, "missing"),
        ({"turns": [{"start_s": 0}]}, "missing"),
        ({"energy": {"rail": 1}}, "missing"),
        ({"loadgen": {"reasons": []}}, "missing"),
        ({"loadgen": {}}, "reasons"),
        ({"latency": []}, "LatencySummary"),
        ({"new_field": 1}, "unknown ['new_field']"),
    ],
)
def test_a_broken_line_is_one_error(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(json.loads(measurement().to_json()) | changes) + "\n")
    with pytest.raises(LabError, match=r"line 1: ") as told:
        read_measurements(path)
    assert message in str(told.value)


def test_what_loadgen_says_is_no_row_of_the_table() -> None:
    found = [measurement(), full()[2]]
    assert [row.name for row in rows(found)] == ["fp32"]
    assert rows(found)[0].throughput is None


def test_a_device_that_slowed_down_is_told_under_the_table() -> None:
    assert "WARNING: throttling set in: thermal" in format_table(full())
    states = States(COOL, (COOL,), COOL, ())
    assert "WARNING" not in format_table([measurement(states=states)])


def test_a_row_a_batch_and_a_kind_of_query() -> None:
    found = [measurement(batch=n) for n in (1, 8)]
    found.append(measurement(batch=8, inside="image"))
    found += [
        measurement(kind="throughput", latency=None, batch=n, throughput_images_per_s=100.0 * n)
        for n in (1, 8)
    ]
    made = rows(found)
    assert [row.name for row in made] == ["fp32, batch 1", "fp32, batch 8", "fp32, batch 8, from files"]
    rates = [row.throughput and row.throughput.throughput_images_per_s for row in made]
    assert rates == [100.0, 800.0, None]
    assert [row.speedup for row in made] == [1.0, 1.0, 1.0]
    head = format_table(found).splitlines()[0]
    assert "p50 ms  " in head
    assert "(batch" not in head
