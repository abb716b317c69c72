"""Measure the variants of a bundle against each other on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from deploy.accuracy import agreement, classify_all, top1
from deploy.backends import CPU_BACKENDS, check_backend, open_runner, usual_in_flight
from deploy.bench_inside import figures_in_place, figures_of_images
from deploy.bench_turns import ROUNDS, Figure, choose_in_flight, take_turns, total_energy
from deploy.bundle import Bundle
from deploy.device_state import DeviceState, changes, read_state
from deploy.errors import LabError
from deploy.machine import describe_machine
from deploy.measure import summarise
from deploy.memory import Memory, peak_memory
from deploy.power import PowerMeter
from deploy.progress import progress
from deploy.results import INSIDE_THE_CLOCK, Accuracy, Measurement, Rule, States, append_measurements
from deploy.runner import Feed, Runner
from deploy.score import score
from deploy.tensors import Samples

DEFAULT_WARMUP_S = 0.2  # as trtexec; before each turn
_TRIAL_S = 0.2


def bench(
    bundle: Bundle,
    *,
    variants: Sequence[str] | None = None,
    backend: str = "onnxruntime",
    threads: int | None = None,
    batches: Sequence[int],
    throughput_batches: Sequence[int] | None = None,
    seconds: float,
    warmup_s: float = DEFAULT_WARMUP_S,
    in_flight: int | None = None,
    in_place: bool = False,
    with_preprocessing: bool = False,
    images: Sequence[tuple[Path, int]] = (),
    tensors: Samples | None = None,
    meter: PowerMeter | None = None,
    out: Path | str | None = None,
) -> list[Measurement]:
    """Two kinds of measurements of each variant: latency at each of `batches`, one query after the other, and
    throughput, with several queries in flight, at each of `throughput_batches` (None: `batches`).

    variants: names; when None, those that were made for the backend. seconds: timed, for each figure.
    in_flight: queries at a time in throughput; when None, one or as many as the device is likely to need,
        whichever does more in a short trial.
    in_place, with_preprocessing: latency also of inputs that lie where the device reads them (TensorRT only),
        and from image files.
    images: files and their class indexes, for the accuracy of the very sessions that are timed. tensors: the
    same for a bundle whose samples are tensors; when None, its own samples.
    meter: opened; adds energy to the throughputs. out: a results file that the measurements are added to.

    The inputs are the bundle's own samples, repeated. All figures take turns in three rounds and each one's
    samples are pooled. Raises LabError.
    """
    names = list(variants) if variants is not None else made_for(bundle, backend)
    many = list(batches if throughput_batches is None else throughput_batches)
    every = list(dict.fromkeys([*batches, *many]))
    _check(bundle, names, batches, every, seconds, warmup_s)
    samples = bundle.tensors()
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(bundle, name, backend, threads=threads)) for name in names
        }
        _check_batches(runners, every)
        largest = max(every)
        if images or bundle.samples:
            accuracies = _accuracies(bundle, runners, images, largest)
        else:
            accuracies = _scores(bundle, runners, tensors or samples, largest)
        figures = []
        for name, runner in runners.items():
            figures += [Figure(name, "latency", n, _query(runner, samples.arrays, n)) for n in batches]
            figures += figures_in_place(name, runner, samples.arrays, batches) if in_place else []
            figures += figures_of_images(bundle, name, runner, batches) if with_preprocessing else []
            figures += _throughputs(bundle, name, runner, samples.arrays, many, in_flight, seconds, stack)
        before, after = take_turns(figures, seconds, warmup_s, read_state, meter)
        measure_memory = _memories(bundle)
        measurements = [
            _measurement(
                bundle, runners[figure.variant], figure, accuracies[figure.variant], (before, after), seconds,
                warmup_s, measure_memory(figure, runners[figure.variant]),
            )
            for figure in figures
        ]  # fmt: skip
    if out is not None:
        append_measurements(out, measurements)
    return measurements


def made_for(bundle: Bundle, backend: str) -> list[str]:
    """Names of the variants of that backend; what was made for one CPU backend is for all of them.

    OpenVINO gets both INT8 forms: its kernels take S8 as well, and the clamp of the U8 one costs there (a
    fifth of ResNet-50 at 224 px, batch 1, one AMX core). TensorRT gets FP32 as well, whose form is
    anybody's, to hold the others against. Raises LabError where there is none.
    """
    check_backend(backend)
    kind = CPU_BACKENDS if backend in CPU_BACKENDS else {backend}
    also = {"openvino": "int8", "tensorrt": "fp32"}.get(backend)
    names = [v.name for v in bundle.variants if v.backend in kind or v.precision == also]
    if not names:
        others = sorted({v.backend for v in bundle.variants})
        raise LabError(
            f"no variant of {bundle.name} was made for {backend}, only for {others}: name variants"
        )
    return names


def _check(
    bundle: Bundle,
    names: Sequence[str],
    batches: Sequence[int],
    every: Sequence[int],
    seconds: float,
    warmup_s: float,
) -> None:
    for name in names:
        bundle.variant(name)
    if len(set(names)) != len(names):
        raise LabError(f"variants {list(names)}: name each once")
    if not batches or min(every) < 1:
        raise LabError(f"batch {every}: each must be at least 1")
    if len(set(batches)) != len(batches):
        raise LabError(f"batch {list(batches)}: name each once")
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


def _query(runner: Runner, samples: Feed, batch: int) -> Callable[[], object]:
    # repeats the samples
    feed = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in samples.items()}
    return lambda: runner.infer(feed)


def _throughputs(
    bundle: Bundle,
    name: str,
    runner: Runner,
    samples: Feed,
    batches: Sequence[int],
    in_flight: int | None,
    seconds: float,
    stack: ExitStack,
) -> list[Figure]:
    """At each batch; the runner of several queries is closed with the stack."""
    most = usual_in_flight(runner.backend, runner.threads) if in_flight is None else in_flight
    openers = {1: runner}
    if most != 1:
        threads = runner.threads if runner.backend in CPU_BACKENDS else None
        openers[most] = stack.enter_context(
            open_runner(bundle, name, runner.backend, threads=threads, in_flight=most)
        )
    figures = []
    for batch in batches:
        calls = {n: _query(opened, samples, batch) for n, opened in openers.items()}
        chosen = choose_in_flight(calls, min(_TRIAL_S, seconds / 10)) if in_flight is None else in_flight
        figures.append(Figure(name, "throughput", batch, calls[chosen], chosen))
    return figures


def _memories(bundle: Bundle) -> Callable[[Figure, Runner], Memory]:
    """Each kind of process once."""
    known: dict[tuple[str, int, int], Memory] = {}

    def measure(figure: Figure, runner: Runner) -> Memory:
        key = figure.variant, figure.batch, figure.in_flight
        if key not in known:
            name, batch, in_flight = key
            known[key] = peak_memory(bundle, name, runner.backend, runner.threads, batch, in_flight)
        return known[key]

    return measure


def _measurement(
    bundle: Bundle,
    runner: Runner,
    figure: Figure,
    accuracy: Accuracy,
    ends: tuple[DeviceState, DeviceState],
    seconds: float,
    warmup_s: float,
    memory: Memory,
) -> Measurement:
    variant, machine = bundle.variant(figure.variant), describe_machine()
    machine["device"] = machine["device"] or runner.device
    latency = figure.kind == "latency"
    before, after = ends
    return Measurement(
        kind=figure.kind,
        variant=figure.variant,
        backend=runner.backend,
        backend_version=runner.backend_version,
        made_for=variant.backend,
        precision=runner.precision or variant.precision,
        batch=figure.batch,
        threads=runner.threads,
        machine=machine,
        rule=Rule(
            warmup_s=warmup_s,
            duration_s=seconds,
            count=figure.count,
            rounds=ROUNDS,
            inside_the_clock=INSIDE_THE_CLOCK[figure.inside],
        ),
        latency=summarise(figure.latency_ms) if latency else None,
        throughput_images_per_s=None if latency else figure.images_per_s,
        peak_memory_mib=memory.peak_mib,
        device_memory_mib=memory.device_mib,
        accuracy=accuracy,
        file_bytes=bundle.path(figure.variant).stat().st_size,
        sha256=bundle.files[variant.file],
        latency_samples_ms=tuple(round(ms, 4) for ms in figure.latency_ms),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        in_flight=figure.in_flight,
        inside=figure.inside,
        turns=tuple(figure.turns),
        states=States(before, tuple(figure.states), after, tuple(changes(before, figure.states, after))),
        energy=total_energy(figure.energies, figure.turns),
    )
