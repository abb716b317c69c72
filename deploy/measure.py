"""The rules of a measurement. Nothing is clipped: an outlier is what a user of the device would see."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

PERCENTILE_RULE = "nearest rank: sorted[n - 1 - floor((100 - p) n / 100)]; the median averages the middle two"


@dataclass(frozen=True)
class LatencySummary:
    """Of single synchronous queries. `cv` is the standard deviation over the mean."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    cv: float


def percentile(samples: Sequence[float], p: float) -> float:
    """The p-th percentile, 0 < p <= 100, by trtexec's rule (samples/common/sampleReporting.cpp).

    The value at index n - 1 - int((1 - p/100) n) of the sorted samples, no interpolation; p = 50 is the
    median and averages the two middle values when n is even.
    """
    if not samples or not 0 < p <= 100:
        raise ValueError(f"percentile {p} of {len(samples)} samples: needs 0 < p <= 100 and a sample")
    if p == 50:
        return float(median(samples))
    # Rounded first: in binary 1 - 0.9 is a little less than 0.1, which would shift the index by one.
    above = int(round((100 - p) * len(samples) / 100, 9))
    return float(sorted(samples)[len(samples) - 1 - above])


def summarise(samples_ms: Sequence[float]) -> LatencySummary:
    """Percentiles, mean and coefficient of variation of latencies in ms."""
    mean = fmean(samples_ms)
    return LatencySummary(
        p50_ms=percentile(samples_ms, 50),
        p90_ms=percentile(samples_ms, 90),
        p99_ms=percentile(samples_ms, 99),
        mean_ms=mean,
        cv=pstdev(samples_ms, mean) / mean if mean > 0 else 0.0,
    )


def measure_latency(
    call: Callable[[], object], *, warmup_s: float, min_duration_s: float, min_count: int
) -> list[float]:
    """Time one query after the other, in ms; at least `min_duration_s` and at least `min_count` of them.

    The garbage collector stays on, as it does for whoever uses the runner.
    """
    _warm_up(call, warmup_s)
    samples: list[float] = []
    end = time.perf_counter_ns() + int(min_duration_s * 1e9)
    while len(samples) < min_count or time.perf_counter_ns() < end:
        before = time.perf_counter_ns()
        call()
        samples.append((time.perf_counter_ns() - before) / 1e6)
    return samples


def measure_throughput(
    call: Callable[[], object],
    images_per_call: int,
    *,
    warmup_s: float,
    min_duration_s: float,
    min_count: int,
) -> tuple[int, float]:
    """(images done, seconds from the first call's start to the last one's end)."""
    _warm_up(call, warmup_s)
    calls = 0
    start = now = time.perf_counter_ns()
    while calls < min_count or now - start < min_duration_s * 1e9:
        call()
        calls += 1
        now = time.perf_counter_ns()
    return calls * images_per_call, (now - start) / 1e9


def _warm_up(call: Callable[[], object], seconds: float) -> None:
    """At least one untimed call: the first one allocates."""
    end = time.perf_counter_ns() + int(seconds * 1e9)
    call()
    while time.perf_counter_ns() < end:
        call()
