"""The report's plots of latency, where nothing is clipped, and its section on the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.device_state import DeviceState
from deploy.measure import Turn, summarise
from deploy.power import Energy
from deploy.results import Measurement, States, append_measurements
from deploy.table import rows
from scripts.report import main
from scripts.report_figures import Series
from scripts.report_latency import extremes, histogram, start_times, tail, timeline
from tests.test_deploy_measure import measurement
from tests.test_results_schema import LOADGEN


def timed(count: int, outlier_ms: float, **changes: Any) -> Measurement:
    """`count` queries of 1 to 1.1 ms, and one of them an outlier, in two turns ten seconds apart."""
    samples = np.linspace(1.0, 1.1, count)
    samples[count // 3] = outlier_ms
    half = count // 2
    turns = (Turn(0.5, 1.0, half), Turn(10.5, 1.0, count - half))
    return measurement(
        latency=summarise(samples.tolist()),
        latency_samples_ms=tuple(samples.tolist()),
        turns=turns,
        **changes,
    )


def series(*measurements: Measurement) -> list[Series]:
    return [Series("run", [], rows(measurements), frozenset())]


def test_queries_of_a_turn_follow_each_other() -> None:
    found = start_times([Turn(2.0, 0.03, 2), Turn(7.0, 0.05, 1)], np.array([10.0, 20.0, 50.0]))
    np.testing.assert_allclose(found, [2.0, 2.01, 7.0])


def test_thinning_keeps_every_extreme() -> None:
    samples = np.random.default_rng(0).uniform(1, 2, 100_000)
    samples[[77, 50_000, 99_999]] = 90.0, 0.01, 80.0
    kept = extremes(samples, 800)
    assert len(kept) <= 800
    assert {77, 50_000, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert extremes(samples[:10], 800).tolist() == list(range(10))


def test_an_outlier_is_in_every_plot() -> None:
    found = series(timed(5000, 250.0), timed(5000, 1.05, variant="int8"))
    bins, ticks, *_ = (histogram(found) or {})["data"]
    assert bins["x"][-1] > 250
    assert sum(bins["y"]) == pytest.approx(100, abs=0.1)
    assert max(ticks["x"]) == 250.0
    assert max((tail(found) or {})["data"][0]["x"]) == 250.0
    line = (timeline(found) or {})["data"][0]
    assert max(line["y"]) == 250.0
    assert (min(line["x"]), 10.5 <= max(line["x"]) <= 20) == (0.5, True)


def test_files_of_before_turns_have_no_time_axis() -> None:
    old = replace(timed(100, 2.0), turns=())
    assert timeline(series(old)) is None
    assert histogram(series(old)) is not None


def test_the_page_tells_of_the_device(tmp_path: Path) -> None:
    cool = DeviceState({"gpu": 1020.0}, {"tj": 43.5}, "MAXN", ())
    hot = DeviceState({"gpu": 820.0}, {"tj": 70.5}, "MAXN", ("thermal",))
    states = States(cool, (cool, hot), hot, ("throttling set in: <thermal>",))
    energy = Energy("ina3221", "VDD_IN", {"VDD_IN": 9.4}, 4.1, 0.0123, 0.0061, 10.0, 31)
    many = measurement(
        kind="throughput", latency=None, latency_samples_ms=(), throughput_images_per_s=764.0, energy=energy
    )
    tested = measurement(kind="loadgen", latency=None, latency_samples_ms=(), loadgen=LOADGEN)
    append_measurements(tmp_path / "results.jsonl", [timed(100, 2.0, states=states), many, tested])
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for text in (
        "throttling set in: &lt;thermal&gt;", "rail VDD_IN (ina3221, 10 samples/s); idle before: 4.10 W",
        "<td>12.3</td><td>6.1</td>", "<td>gpu, MHz</td><td>1020</td><td>820 to 1020</td><td>820</td>",
        "<td>tj, °C</td><td>43.5</td><td>43.5 to 70.5</td><td>70.5</td>", "no official MLPerf result",
        "fp32, Server, is INVALID: too few queries", 'id="timeline"',
    ):  # fmt: skip
        assert text in page


def test_a_page_without_such_measurements_has_no_such_section(tmp_path: Path) -> None:
    append_measurements(tmp_path / "results.jsonl", [measurement()])
    assert main([str(tmp_path)]) == 0
    assert "<h2>Device" not in (tmp_path / "report.html").read_text()
