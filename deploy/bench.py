"""Measure the variants of a bundle against each other on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import ceil
from pathlib import Path

import numpy as np

from deploy.accuracy import agreement, classify_all, top1
from deploy.backends import CPU_BACKENDS, check_backend, open_runner
from deploy.bundle import Bundle
from deploy.errors import LabError
from deploy.machine import describe_machine
from deploy.measure import measure_latency, measure_throughput, summarise
from deploy.memory import peak_memory_mib
from deploy.progress import progress
from deploy.results import Accuracy, Measurement, Rule, append_measurements
from deploy.runner import Feed, Runner
from deploy.score import score
from deploy.tensors import Samples

ROUNDS = 3
MIN_COUNT = 10  # as trtexec; over all rounds
DEFAULT_WARMUP_S = 0.2  # as trtexec; before each variant's turn


@dataclass
class _Tally:
    """What the rounds have gathered about one variant."""

    latency_ms: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0


def bench(
    bundle: Bundle,
    *,
    variants: Sequence[str] | None = None,
    backend: str = "onnxruntime",
    threads: int | None = None,
    batches: Sequence[int],
    seconds: float,
    warmup_s: float = DEFAULT_WARMUP_S,
    images: Sequence[tuple[Path, int]] = (),
    tensors: Samples | None = None,
    out: Path | str | None = None,
) -> list[Measurement]:
    """Two measurements a variant: latency at the smallest batch, throughput at the largest.

    variants: names; when None, those that were made for the backend. seconds: timed, for each of the two
    figures of each variant. images: files and their class indexes, for the accuracy of the very sessions
    that are timed. tensors: the same for a bundle whose samples are tensors; when None, its own samples.
    out: a results file that the measurements are added to.

    The inputs are the bundle's own samples, repeated. The variants take turns in three rounds and each one's
    samples are pooled, so a machine that warms up or gets busy does so for all of them. Raises LabError.
    """
    names = list(variants) if variants is not None else made_for(bundle, backend)
    _check(bundle, names, batches, seconds, warmup_s)
    samples = bundle.tensors()
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(bundle, name, backend, threads=threads)) for name in names
        }
        _check_batches(runners, batches)
        if images or bundle.samples:
            accuracies = _accuracies(bundle, runners, images, max(batches))
        else:
            accuracies = _scores(bundle, runners, tensors or samples, max(batches))
        tallies = _time(runners, samples.arrays, batches, seconds, warmup_s)
        measurements = [
            m
            for name, runner in runners.items()
            for m in _measurements(
                bundle, name, runner, tallies[name], accuracies[name], batches, seconds, warmup_s
            )
        ]
    if out is not None:
        append_measurements(out, measurements)
    return measurements


def made_for(bundle: Bundle, backend: str) -> list[str]:
    """Names of the variants of that backend; what was made for one CPU backend is for all of them.

    OpenVINO gets both INT8 forms: its kernels take S8 as well, and the clamp of the U8 one costs there (a
    fifth of ResNet-50 at 224 px, batch 1, one AMX core). Raises LabError where there is none.
    """
    check_backend(backend)
    kind = CPU_BACKENDS if backend in CPU_BACKENDS else {backend}
    both = backend == "openvino"
    names = [v.name for v in bundle.variants if v.backend in kind or (both and v.precision == "int8")]
    if not names:
        others = sorted({v.backend for v in bundle.variants})
        raise LabError(
            f"no variant of {bundle.name} was made for {backend}, only for {others}: name variants"
        )
    return names


def _check(
    bundle: Bundle, names: Sequence[str], batches: Sequence[int], seconds: float, warmup_s: float
) -> None:
    for name in names:
        bundle.variant(name)
    if len(set(names)) != len(names):
        raise LabError(f"variants {list(names)}: name each once")
    if not batches or min(batches) < 1:
        raise LabError(f"batch {list(batches)}: each must be at least 1")
    if not 0 < seconds <= 3600:
        raise LabError(f"seconds {seconds}: must be more than 0 and at most 3600")
    if not 0 <= warmup_s <= 60:
        raise LabError(f"warm-up {warmup_s} s: must be 0 to 60")


def _accuracies(
    bundle: Bundle, runners: Mapping[str, Runner], found: Sequence[tuple[Path, int]], batch: int
) -> dict[str, Accuracy]:
    if not found:
        return dict.fromkeys(runners, Accuracy())
    assert bundle.input is not None  # else `images` could not be listed
    with progress("accuracy", len(found)) as advance:
        logits = classify_all(runners, [path for path, _ in found], bundle.input, batch, advance)
    labels = [label for _, label in found]
    fp32 = bundle.reference()
    reference = logits.get(fp32.name) if fp32 else None
    return {
        name: Accuracy(
            top1=top1(rows, labels),
            num_images=len(found),
            agreement_with_fp32=None if reference is None else agreement(rows, reference),
        )
        for name, rows in logits.items()
    }


def _scores(bundle: Bundle, runners: Mapping[str, Runner], found: Samples, batch: int) -> dict[str, Accuracy]:
    fp32 = bundle.reference()
    reference = fp32.name if fp32 and fp32.name in runners else None
    with progress("accuracy", len(found)) as advance:
        return score(runners, found.batches(batch), bundle.class_output, reference, advance)


def _check_batches(runners: Mapping[str, Runner], batches: Sequence[int]) -> None:
    for name, runner in runners.items():
        fixed = runner.inputs[0].shape[0]
        if fixed is not None and set(batches) != {fixed}:
            raise LabError(f"{name} takes a batch of {fixed} only, not {list(batches)}: give --batch {fixed}")


def _time(
    runners: Mapping[str, Runner],
    samples: Feed,
    batches: Sequence[int],
    seconds: float,
    warmup_s: float,
) -> dict[str, _Tally]:
    tallies = {name: _Tally() for name in runners}
    turn_s, count = seconds / ROUNDS, ceil(MIN_COUNT / ROUNDS)
    with progress("timing", ROUNDS * len(runners)) as advance:
        for _ in range(ROUNDS):
            for name, runner in runners.items():
                tally = tallies[name]
                tally.latency_ms += measure_latency(
                    _query(runner, samples, min(batches)),
                    warmup_s=warmup_s,
                    min_duration_s=turn_s,
                    min_count=count,
                )
                images, spent = measure_throughput(
                    _query(runner, samples, max(batches)),
                    max(batches),
                    warmup_s=warmup_s,
                    min_duration_s=turn_s,
                    min_count=count,
                )
                tally.images += images
                tally.seconds += spent
                advance(1)
    return tallies


def _query(runner: Runner, samples: Feed, batch: int) -> Callable[[], object]:
    # repeats the samples
    feed = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in samples.items()}
    return lambda: runner.infer(feed)


def _measurements(
    bundle: Bundle,
    name: str,
    runner: Runner,
    tally: _Tally,
    accuracy: Accuracy,
    batches: Sequence[int],
    seconds: float,
    warmup_s: float,
) -> list[Measurement]:
    variant, machine = bundle.variant(name), describe_machine()
    machine["device"] = machine["device"] or runner.device

    def row(latency: bool) -> Measurement:
        batch = min(batches) if latency else max(batches)
        count = len(tally.latency_ms) if latency else tally.images // batch
        return Measurement(
            kind="latency" if latency else "throughput",
            variant=name,
            backend=runner.backend,
            backend_version=runner.backend_version,
            made_for=variant.backend,
            precision=runner.precision or variant.precision,
            batch=batch,
            threads=runner.threads,
            machine=machine,
            rule=Rule(warmup_s=warmup_s, duration_s=seconds, count=count, rounds=ROUNDS),
            latency=summarise(tally.latency_ms) if latency else None,
            throughput_images_per_s=None if latency else tally.images / tally.seconds,
            peak_memory_mib=peak_memory_mib(bundle, name, runner.backend, runner.threads, batch),
            accuracy=accuracy,
            file_bytes=bundle.path(name).stat().st_size,
            sha256=bundle.files[variant.file],
            latency_samples_ms=tuple(round(ms, 4) for ms in tally.latency_ms) if latency else (),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    return [row(latency=True), row(latency=False)]
