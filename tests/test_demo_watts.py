"""The watts beside the picture: a mean of late, or the reason why there are none.

The meter is a mock with the methods of `deploy.power.PowerMeter`: few test machines have a real one.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

import pytest

from deploy.demo import pipeline
from deploy.demo.pipeline import open_show
from deploy.demo.show import Lane
from deploy.demo.watts import Drawn, Watts
from deploy.errors import LabError
from deploy.power import PowerSample
from tests.demo_shows import until
from tests.test_deploy_bundle import tiny_bundle


class Meter:
    """Reads what it is given, then the last of it for ever."""

    source, rails, rail, hertz = "ina3221", ("VDD_IN", "VDD_CPU"), "VDD_IN", 1000.0

    def __init__(self, *readings: float | LabError) -> None:
        self.readings, self.num_reads, self.is_open = list(readings), 0, False

    def read(self) -> PowerSample:
        self.num_reads += 1
        reading = self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]
        if isinstance(reading, LabError):
            raise reading
        return PowerSample(time.monotonic(), {"VDD_IN": reading, "VDD_CPU": 1.0})

    def __enter__(self) -> Meter:
        self.is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False


def test_the_mean_of_the_last_second_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.watts._FASTEST_S", 0.001)
    meter = Meter(*[6.0, 8.0] * 20, 7.0)
    with Watts(lambda: meter) as watts:
        assert watts.drawn() == Drawn(None, None, "not read yet") or meter.num_reads
        until(lambda: meter.num_reads > 2)
        until(lambda: 6.5 < (watts.drawn().watts or 0) < 7.5)
        assert watts.drawn().rail == "VDD_IN"
        assert watts.drawn().missing is None
    assert not meter.is_open


def test_what_was_drawn_before_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.watts._FASTEST_S", 0.001)
    monkeypatch.setattr("deploy.demo.watts._MEAN_OVER_S", 0.05)
    with Watts(lambda: Meter(100.0, 7.0)) as watts:
        until(lambda: (watts.drawn().watts or 0) > 0)
        until(lambda: watts.drawn().watts == 7.0)
        assert watts.drawn().rail == "VDD_IN"


def test_a_meter_that_fails_for_a_while_says_so_and_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.watts._FASTEST_S", 0.001)
    monkeypatch.setattr("deploy.demo.watts._AGAIN_S", 0.2)
    with Watts(lambda: Meter(9.0, LabError("the sensor is asleep"), 5.0)) as watts:
        until(lambda: watts.drawn() == Drawn(None, None, "the sensor is asleep"))
        until(lambda: watts.drawn() == Drawn(5.0, "VDD_IN", None))


def test_a_slow_read_does_not_hold_up_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, asked = Event(), []

    class Slow(Meter):
        def read(self) -> PowerSample:
            go.wait(60)
            return super().read()

    def find(device: str) -> Slow:
        asked.append(device)
        return Slow(4.0)

    monkeypatch.setattr(pipeline, "find_meter", find)
    with open_show(tiny_bundle(tmp_path), "upload", [Lane("fp32", "onnxruntime")], threads=1) as show:
        assert show.status().watts_missing == "not read yet"
        go.set()
        until(lambda: show.status().watts == 4.0)
        assert (show.status().watts_of, show.status().watts_missing) == ("VDD_IN", None)
    assert asked == ["cpu"]


def test_the_reason_is_told_where_nothing_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(device: str) -> Meter:
        raise LabError("no meter here: buy one")

    monkeypatch.setattr(pipeline, "find_meter", find)
    with open_show(tiny_bundle(tmp_path), "upload", threads=1) as show:
        until(lambda: show.status().watts_missing == "no meter here: buy one")
        assert show.status().watts is None
