"""The timing of a benchmark: what is measured takes turns, so that a machine that warms up or gets busy does
so for all of it. Between the turns the device is looked at, never inside one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from deploy.device_state import DeviceState
from deploy.measure import Turn, measure_latency, measure_throughput, warm_up
from deploy.power import Energy, PowerMeter, PowerSample
from deploy.power_recording import energy_of, record_power
from deploy.progress import progress
from deploy.results import Inside

ROUNDS = 3
MIN_COUNT = 10  # as trtexec; over all rounds
IDLE_S = 3.0
Look = Callable[[], DeviceState]


@dataclass
class Figure:
    """One latency or throughput of one variant, and what the rounds have gathered about it.

    call: one query of `batch` samples. in_flight: how many may run at once.
    """

    variant: str
    kind: Literal["latency", "throughput"]
    batch: int
    call: Callable[[], object]
    in_flight: int = 1
    inside: Inside = "host"
    latency_ms: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    states: list[DeviceState] = field(default_factory=list)
    energies: list[Energy] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Queries that were timed."""
        return sum(turn.count for turn in self.turns)

    @property
    def images_per_s(self) -> float:
        return self.count * self.batch / sum(turn.seconds for turn in self.turns)


def take_turns(
    figures: Sequence[Figure], seconds: float, warmup_s: float, look: Look, meter: PowerMeter | None = None
) -> tuple[DeviceState, DeviceState]:
    """Fill the figures, `seconds` for each. Gives the device's state before all and after all.

    meter: opened; tells the energy of each throughput, above what it reads in some idle seconds first.
    Raises LabError where it has nothing to say.
    """
    turn_s, count = seconds / ROUNDS, ceil(MIN_COUNT / ROUNDS)
    before = look()
    idle = [] if meter is None else _idle(meter)
    start = time.perf_counter()
    with progress("timing", ROUNDS * len(figures)) as advance:
        for _ in range(ROUNDS):
            for figure in figures:
                warm_up(figure.call, warmup_s, figure.in_flight)
                figure.states.append(look())
                if figure.kind == "latency":
                    _time_latency(figure, turn_s, count, start)
                else:
                    _time_throughput(figure, turn_s, count, start, meter, idle)
                figure.states.append(look())
                advance(1)
    return before, look()


def _idle(meter: PowerMeter) -> list[PowerSample]:
    with record_power(meter) as recording:
        time.sleep(IDLE_S)
    return recording.samples


def _time_latency(figure: Figure, seconds: float, count: int, start: float) -> None:
    samples = measure_latency(figure.call, warmup_s=0, min_duration_s=seconds, min_count=count)
    taken = sum(samples) / 1e3
    # Back from the end: the first call of all is untimed.
    figure.turns.append(Turn(time.perf_counter() - start - taken, taken, len(samples)))
    figure.latency_ms += samples


def _time_throughput(
    figure: Figure,
    seconds: float,
    count: int,
    start: float,
    meter: PowerMeter | None,
    idle: list[PowerSample],
) -> None:
    def measure() -> Turn:
        begin = time.perf_counter() - start
        images, taken = measure_throughput(
            figure.call,
            figure.batch,
            min_duration_s=seconds,
            min_count=count,
            in_flight=figure.in_flight,
        )
        return Turn(begin, taken, images // figure.batch)

    if meter is None:
        figure.turns.append(measure())
        return
    with record_power(meter) as recording:
        turn = measure()
    figure.turns.append(turn)
    images = turn.count * figure.batch
    figure.energies.append(energy_of(meter, idle, recording.samples, images, turn.seconds))


def total_energy(energies: Sequence[Energy], turns: Sequence[Turn]) -> Energy | None:
    """Of the turns together: power weighted by their seconds, joules by their queries. None of none."""
    if not energies:
        return None
    first, seconds, counts = energies[0], [t.seconds for t in turns], [t.count for t in turns]

    def mean(values: Sequence[float], weights: Sequence[float]) -> float:
        return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)

    return Energy(
        source=first.source,
        rail=first.rail,
        watts={rail: mean([e.watts[rail] for e in energies], seconds) for rail in first.watts},
        idle_watts=first.idle_watts,
        joules_per_image=mean([e.joules_per_image for e in energies], counts),
        joules_per_image_above_idle=mean([e.joules_per_image_above_idle for e in energies], counts),
        sample_hertz=mean([e.sample_hertz for e in energies], seconds),
        num_samples=sum(e.num_samples for e in energies),
    )


def choose_in_flight(calls: dict[int, Callable[[], object]], seconds: float) -> int:
    """The number of queries in flight, a key of `calls`, that does most queries a second: in three short
    turns each, by the median. Of equals the fewest."""
    if len(calls) == 1:
        return next(iter(calls))
    rates: dict[int, list[float]] = {in_flight: [] for in_flight in calls}
    for in_flight, call in calls.items():
        warm_up(call, 0, in_flight)
    for _ in range(3):
        for in_flight, call in calls.items():
            count, taken = measure_throughput(
                call, 1, min_duration_s=seconds, min_count=in_flight, in_flight=in_flight
            )
            rates[in_flight].append(count / taken)
    return max(sorted(calls), key=lambda in_flight: sorted(rates[in_flight])[1])
