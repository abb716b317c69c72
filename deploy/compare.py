"""Whether two results files differ by more than noise.

The samples of one run are no independent draws: neighbours share clocks, caches and other programs, and a
whole turn may be slow. So a ratio's interval is the wider of two:

    block bootstrap     each turn is cut into eighths; blocks are drawn with replacement, all queries of a
                        block together (Carlstein 1986)
    t over the turns    of the logarithms of each turn's own figure, pooled variance

The first sees what happens within a turn, the second what sets turns apart, of which there are few.
Throughput has no samples, and the second alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deploy.results import Measurement

Floats = NDArray[np.float64]
_DRAWS = 2000
_BLOCKS = 8
_BINS = 256
# 97.5 % of Student's t for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
Statistic = Literal["p50", "mean", "images/s"]


@dataclass(frozen=True)
class Compared:
    """One figure in both files. ratio: B over A; low, high: its 95 % interval."""

    name: str
    batch: int
    statistic: Statistic
    a: float
    b: float
    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of B."""
        if self.low <= 1 <= self.high:
            return "no difference seen"
        return "faster" if (self.ratio > 1) == (self.statistic == "images/s") else "slower"


def compare(a: Sequence[Measurement], b: Sequence[Measurement]) -> list[Compared]:
    """Every figure that is in both, by variant, backend, batch and kind of query.

    What was measured several times is taken together: more runs, more turns, a narrower interval.
    """
    first, second = _grouped(a), _grouped(b)
    found = []
    for key in first:
        if key in second:
            variant, backend, _, batch, inside = key
            name = f"{variant} ({backend})" + ("" if inside == "host" else f", {inside}")
            found += list(_compare(name, int(batch), first[key], second[key]))
    return found


def interval(a: Sequence[Floats], b: Sequence[Floats], statistic: Statistic) -> tuple[float, float, float]:
    """(ratio B over A, its 95 % interval) of samples by turn."""
    rng = np.random.default_rng(0)
    bootstrap = _bootstrap(b, statistic, rng) - _bootstrap(a, statistic, rng)
    low, high = np.quantile(bootstrap, [0.025, 0.975])
    of = np.median if statistic == "p50" else np.mean
    value = math.log(of(np.concatenate(b)) / of(np.concatenate(a)))
    turns = _t_interval([math.log(of(turn)) for turn in a], [math.log(of(turn)) for turn in b], value)
    return math.exp(value), math.exp(min(low, turns[0])), math.exp(max(high, turns[1]))


def turns_of(m: Measurement) -> list[Floats]:
    """The latencies of each turn, ms; of before turns were recorded, as many equal parts."""
    samples = np.asarray(m.latency_samples_ms)
    if not m.turns:
        return [part for part in np.array_split(samples, m.rule.rounds) if len(part)]
    return np.split(samples, list(accumulate(turn.count for turn in m.turns))[:-1])


def _grouped(measurements: Sequence[Measurement]) -> dict[tuple[str, ...], list[Measurement]]:
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for m in measurements:
        if m.kind != "loadgen":
            groups.setdefault((m.variant, m.backend, m.kind, str(m.batch), m.inside), []).append(m)
    return groups


def _compare(name: str, batch: int, a: Sequence[Measurement], b: Sequence[Measurement]) -> Iterator[Compared]:
    if a[0].kind == "throughput":
        turns = [[t for m in found for t in m.turns] for found in (a, b)]
        if all(len(found) > 1 for found in turns):
            logs = [[math.log(t.count * batch / t.seconds) for t in found] for found in turns]
            # As in the results' own table: all images over all of the time.
            one, other = (
                batch * sum(t.count for t in found) / sum(t.seconds for t in found) for found in turns
            )
            low, high = _t_interval(logs[0], logs[1], math.log(other / one))
            yield Compared(name, batch, "images/s", one, other, other / one, math.exp(low), math.exp(high))
        return
    first, second = ([turn for m in found for turn in turns_of(m)] for found in (a, b))
    whole_a, whole_b = np.concatenate(first), np.concatenate(second)
    p50 = interval(first, second, "p50")
    yield Compared(name, batch, "p50", float(np.median(whole_a)), float(np.median(whole_b)), *p50)
    mean = interval(first, second, "mean")
    yield Compared(name, batch, "mean", float(whole_a.mean()), float(whole_b.mean()), *mean)


def _bootstrap(turns: Sequence[Floats], statistic: Statistic, rng: np.random.Generator) -> Floats:
    """Logarithms of the statistic of each draw of blocks."""
    blocks = [block for turn in turns for block in np.array_split(turn, min(_BLOCKS, len(turn)))]
    drawn = rng.multinomial(len(blocks), [1 / len(blocks)] * len(blocks), size=_DRAWS).astype(float)
    if statistic == "mean":
        sums = np.array([block.sum() for block in blocks])
        counts = np.array([len(block) for block in blocks])
        return np.asarray(np.log((drawn @ sums) / (drawn @ counts)))
    # A draw's median is read from its counts by bins of equal share: sorting every draw would take minutes.
    edges = np.unique(np.quantile(np.concatenate(turns), np.linspace(0, 1, _BINS + 1)))
    if len(edges) == 1:
        return np.full(_DRAWS, math.log(edges[0]))
    counts = np.array([np.histogram(block, edges)[0] for block in blocks])
    up_to = np.cumsum(drawn @ counts, axis=1)
    half = up_to[:, -1:] / 2
    at = (up_to < half).sum(axis=1)
    rows = np.arange(_DRAWS)
    below = np.where(at > 0, up_to[rows, at - 1], 0.0)
    share = (half[:, 0] - below) / (up_to[rows, at] - below)
    return np.asarray(np.log(edges[at] + share * (edges[at + 1] - edges[at])))


def _t_interval(a: Sequence[float], b: Sequence[float], value: float) -> tuple[float, float]:
    """Of a difference of means, around `value`; with a single turn on both sides nothing is known of it."""
    freedom = len(a) + len(b) - 2
    if freedom < 1:
        return -math.inf, math.inf
    squares = sum(float(np.square(np.asarray(x) - np.mean(x)).sum()) for x in (a, b))
    error = math.sqrt(squares / freedom * (1 / len(a) + 1 / len(b)))
    half = (_T[freedom - 1] if freedom <= len(_T) else 1.96) * error
    return value - half, value + half


def differences(a: Sequence[Measurement], b: Sequence[Measurement]) -> list[str]:
    """What else is not the same in what the two have in common, a line each."""
    first, second = _grouped(a), _grouped(b)
    a, b = (
        [m for key in found if key in first and key in second for m in found[key]]
        for found in (first, second)
    )
    lines = []
    for what, of in _ABOUT.items():
        in_a, in_b = ({str(of(m)): None for m in found} for found in (a, b))
        if in_a.keys() != in_b.keys():
            only = [
                ", ".join(text for text in one if text not in other)
                for one, other in ((in_a, in_b), (in_b, in_a))
            ]
            lines.append(f"{what}: {only[0] or 'nothing else'} in A, {only[1] or 'nothing else'} in B")
    for letter, found in (("A", a), ("B", b)):
        warned = dict.fromkeys(text for m in found if m.states for text in m.states.warnings)
        lines += [f"{letter}: {text}" for text in warned]
    return lines


def _mode(m: Measurement) -> str:
    return (m.states.before.power_mode if m.states else None) or "unknown"


_ABOUT: dict[str, Callable[[Measurement], Any]] = {
    "device": lambda m: m.machine.get("device"),
    "CPU": lambda m: m.machine.get("cpu"),
    "cores": lambda m: m.machine.get("cores"),
    "power mode": _mode,
    "clock governor": lambda m: m.machine.get("governor"),
    "system": lambda m: m.machine.get("os"),
    "Python": lambda m: m.machine.get("python"),
    "backend": lambda m: f"{m.backend} {m.backend_version}",
    "threads": lambda m: m.threads,
    "queries in flight": lambda m: f"{m.in_flight} ({m.variant}, batch {m.batch}, {m.kind})",
    "model file": lambda m: f"{m.sha256[:12]} ({m.variant})",
}
