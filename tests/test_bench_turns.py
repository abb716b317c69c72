"""How figures are timed: in turns, several queries in flight, by a clock that never goes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.backends import open_runner
from deploy.bench import bench
from deploy.bench_inside import figures_of_images
from deploy.bench_table import format_energy, format_in_flight
from deploy.bench_turns import ROUNDS, Figure, choose_in_flight, take_turns, total_energy
from deploy.device_state import DeviceState
from deploy.errors import LabError
from deploy.measure import Turn, measure_throughput
from deploy.power import Energy, PowerSample
from deploy.preprocess import load_image
from deploy.runner import Arrays
from tests.test_deploy_bundle import tiny_bundle

STATE = DeviceState({"cpu0": 1000.0}, {}, "15W", ())


class Meter:
    """A meter made by hand: 3 W while idle, 7 W from the first query on."""

    source, rails, rail, hertz = "ina3221", ("VDD_IN", "VDD_CPU"), "VDD_IN", 200.0

    def __init__(self) -> None:
        self.busy = False

    def read(self) -> PowerSample:
        watts = 7.0 if self.busy else 3.0
        return PowerSample(time.monotonic(), {"VDD_IN": watts, "VDD_CPU": 1.0})

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def test_queries_in_flight_run_at_the_same_time() -> None:
    together = threading.Barrier(3)  # breaks, and fails the test, unless three are inside at once
    images, seconds = measure_throughput(
        lambda: together.wait(timeout=20), 4, min_duration_s=0, min_count=3, in_flight=3
    )
    assert images == 12
    assert seconds > 0


def test_a_failure_in_flight_is_told_where_it_was_asked_for() -> None:
    def fail() -> None:
        raise LabError("no memory")

    with pytest.raises(LabError, match="no memory"):
        measure_throughput(fail, 1, min_duration_s=0, min_count=4, in_flight=2)


def test_the_device_is_looked_at_between_the_turns_and_never_inside_a_query() -> None:
    inside = []
    events: list[str] = []

    def query() -> None:
        inside.append(1)
        events.append("query")
        inside.pop()

    def look() -> DeviceState:
        assert not inside
        events.append("look")
        return STATE

    figures = [Figure("a", "latency", 1, query), Figure("b", "throughput", 4, query)]
    before, after = take_turns(figures, 0.003, 0, look)
    assert before is after is STATE
    assert events.count("look") == 2 + 2 * 2 * ROUNDS
    assert [len(figure.states) for figure in figures] == [2 * ROUNDS] * 2
    latency, throughput = figures
    assert [turn.count for turn in latency.turns] == [latency.count // ROUNDS] * ROUNDS or latency.count >= 10
    assert len(latency.latency_ms) == latency.count
    assert throughput.images_per_s == pytest.approx(
        4 * throughput.count / sum(turn.seconds for turn in throughput.turns)
    )


def test_turns_lie_after_each_other_on_the_time_axis() -> None:
    figures = [Figure(name, "latency", 1, lambda: None) for name in ("a", "b")]
    begin = time.perf_counter()
    take_turns(figures, 0.01, 0, lambda: STATE)
    elapsed = time.perf_counter() - begin
    turns = [turn for i in range(ROUNDS) for turn in (figures[0].turns[i], figures[1].turns[i])]
    assert turns[0].start_s >= 0
    for one, after in pairwise(turns):
        assert one.start_s + one.seconds <= after.start_s
    assert turns[-1].start_s + turns[-1].seconds <= elapsed


def test_a_clock_that_is_set_back_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hours = count(step=-3600)
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(hours))
    monkeypatch.setattr(time, "time_ns", lambda: int(1e18) + next(hours) * 10**9)
    found = bench(tiny_bundle(tmp_path), threads=1, batches=[1], seconds=0.01, warmup_s=0)
    assert all(ms > 0 for m in found for ms in m.latency_samples_ms)
    assert all(turn.seconds > 0 and turn.start_s >= 0 for m in found for turn in m.turns)
    assert all(m.throughput_images_per_s > 0 for m in found if m.throughput_images_per_s is not None)


@contextmanager
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A clock that moves only when it is told to."""
    now = [0]

    def advance(seconds: float) -> None:
        now[0] += int(seconds * 1e9)

    monkeypatch.setattr("deploy.measure.time.perf_counter_ns", lambda: now[0])
    yield advance
    monkeypatch.undo()


@pytest.mark.parametrize(("one_s", "chosen"), [(0.3, 2), (0.05, 1), (0.1, 1)])
def test_as_many_queries_are_in_flight_as_are_faster(
    monkeypatch: pytest.MonkeyPatch, one_s: float, chosen: int
) -> None:
    with slow_clock(monkeypatch) as advance:
        lock = threading.Lock()

        def one() -> None:
            advance(one_s)

        def two() -> None:
            with lock:
                advance(0.1)

        assert choose_in_flight({1: one, 2: two}, 0.0) == chosen


def test_a_query_from_image_files_decodes_as_many_as_its_batch_in_turn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tiny_bundle(tmp_path)
    read: list[Path] = []

    def load(path: Path) -> NDArray[np.uint8]:
        read.append(path)
        return load_image(path)

    monkeypatch.setattr("deploy.bench_inside.load_image", load)
    with open_runner(bundle, "fp32", threads=1) as runner:
        (figure,) = figures_of_images(bundle, "fp32", runner, [4])
        first, second = (cast("Arrays", figure.call()) for _ in range(2))
    paths = bundle.sample_paths()
    assert read == [*paths, *paths][:8]
    expected = bundle.expected()["fp32"]
    for answer, rows in ((first, expected[:4]), (second, expected[[4, 5, 0, 1]])):
        np.testing.assert_allclose(answer["logits"], rows, rtol=1e-4, atol=1e-5)


def test_energy_is_of_the_load_above_what_idling_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("deploy.bench_turns.IDLE_S", 0.05)
    meter = Meter()

    def query() -> None:
        meter.busy = True
        time.sleep(0.002)  # as a device takes it

    figure = Figure("a", "throughput", 2, query)
    monkeypatch.setattr("deploy.bench_turns.warm_up", lambda *_: None)
    take_turns([figure], 0.3, 0, lambda: STATE, meter)
    energy = total_energy(figure.energies, figure.turns)
    assert energy is not None
    assert energy.idle_watts == pytest.approx(3)
    assert 6.5 < energy.watts["VDD_IN"] <= 7
    seconds = sum(turn.seconds for turn in figure.turns)
    assert energy.joules_per_image == pytest.approx(
        energy.watts["VDD_IN"] * seconds / figure.count / 2, rel=0.02
    )
    assert energy.joules_per_image_above_idle == pytest.approx(4 / 7 * energy.joules_per_image, rel=0.05)


def test_turns_weigh_as_long_as_they_are() -> None:
    def energy(watts: float, joules: float) -> Energy:
        return Energy("nvml", "board", {"board": watts}, 1.0, joules, joules - 1, 10.0, 5)

    turns = [Turn(0, 1.0, 10), Turn(5, 3.0, 30)]
    total = total_energy([energy(10, 2), energy(20, 4)], turns)
    assert total == Energy("nvml", "board", {"board": 17.5}, 1.0, 3.5, 2.5, 10.0, 10)
    assert total_energy([], turns) is None


def test_bench_tells_energy_and_queries_in_flight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("deploy.bench_turns.IDLE_S", 0.05)
    found = bench(
        tiny_bundle(tmp_path),
        variants=["fp32"],
        threads=1,
        batches=[1],
        seconds=0.03,
        warmup_s=0,
        meter=Meter(),
    )
    assert [m.energy is not None for m in found] == [False, True]
    text = format_energy(found)
    assert "rail VDD_IN (ina3221" in text
    assert "idle before 3.00 W" in text
    assert format_in_flight(found).startswith("throughput: one query after the other")
    assert format_energy(found[:1]) == ""
