"""The rules of a measurement. Nothing is clipped: an outlier is what a user of the device would see."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from statistics import fmean, median, pstdev

PERCENTILE_RULE = "nearest rank: sorted[n - 1 - floor((100 - p) n / 100)]; the median averages the middle two"


@dataclass(frozen=True)
class LatencySummary:
    """Of single synchronous queries.

    cv: the standard deviation over the mean. p99_9_ms: None where there are fewer than 1,000, of which it
    would be the largest.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float | None
    mean_ms: float
    cv: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True)
class Turn:
    """Timed queries, one after the other.

    start_s: of the first, since the measuring began, by the monotonic clock. seconds: to the last one's end.
    count: of queries.
    """

    start_s: float
    seconds: float
    count: int


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
    """Of latencies in ms."""
    mean = fmean(samples_ms)
    return LatencySummary(
        p50_ms=percentile(samples_ms, 50),
        p90_ms=percentile(samples_ms, 90),
        p99_ms=percentile(samples_ms, 99),
        p99_9_ms=percentile(samples_ms, 99.9) if len(samples_ms) >= 1000 else None,
        mean_ms=mean,
        cv=pstdev(samples_ms, mean) / mean if mean > 0 else 0.0,
        min_ms=min(samples_ms),
        max_ms=max(samples_ms),
    )


def measure_latency(
    call: Callable[[], object], *, warmup_s: float, min_duration_s: float, min_count: int
) -> list[float]:
    """Time one query after the other, in ms; at least `min_duration_s` and at least `min_count` of them.

    The garbage collector stays on, as it does for whoever uses the runner.
    """
    warm_up(call, warmup_s)
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
    min_duration_s: float,
    min_count: int,
    in_flight: int = 1,
) -> tuple[int, float]:
    """(images done, seconds from the first call's start to the last one's end).

    in_flight: threads that each have a call running at any time; then `call` must allow that.
    """
    each = ceil(min_count / in_flight)
    start = time.perf_counter_ns()
    end = start + int(min_duration_s * 1e9)
    if in_flight == 1:
        calls = _repeat(call, end, each)
    else:
        with ThreadPoolExecutor(in_flight) as threads:
            loops = [threads.submit(_repeat, call, end, each) for _ in range(in_flight)]
            calls = sum(loop.result() for loop in loops)
    return calls * images_per_call, (time.perf_counter_ns() - start) / 1e9


def _repeat(call: Callable[[], object], end_ns: int, min_count: int) -> int:
    calls = 0
    while calls < min_count or time.perf_counter_ns() < end_ns:
        call()
        calls += 1
    return calls


def warm_up(call: Callable[[], object], seconds: float, in_flight: int = 1) -> None:
    """Untimed calls, at least one in each thread: the first one allocates."""
    measure_throughput(call, 1, min_duration_s=seconds, min_count=in_flight, in_flight=in_flight)
