"""A test by MLPerf's LoadGen, in a process of its own: the system under test is a runner.

LoadGen calls back from its own threads and knows no way to end a test early, and an exception in a callback
leaves it unable to close down. Here any failure ends the process at once, with one line of what it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import numpy as np

from deploy.accuracy import answer
from deploy.backends import open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.errors import LabError
from deploy.measure import measure_throughput, warm_up
from deploy.preprocess import load_image, preprocess
from deploy.runner import Arrays, Feed, Runner
from deploy.tensors import Tensors, read_tensors

MOST_IN_MEMORY = 1024
"""Samples that a test of performance repeats, as MLPerf has it for ResNet-50."""
_TRIALS, _TRIAL_S = 5, 0.1
_SPARE = 2.5
"""How much faster than in its trial a stream may be before it runs out of queries, which take memory."""


@dataclass(frozen=True)
class Job:
    """What the child is to do. batch: the most samples of one inference, in Offline and Server. images,
    tensors: a list of files, or an .npz file; with neither, the bundle's own samples."""

    root: str
    variant: str
    backend: str
    threads: int | None
    in_flight: int
    scenario: str
    accuracy: bool
    seconds: float
    warmup_s: float
    batch: int
    target_qps: float | None
    target_latency_ms: float | None
    images: list[str] | None
    tensors: str | None
    logs: str


class Library:
    """The samples, by index, of which those that LoadGen asks for are in memory, ready to be inferred."""

    def __init__(self, bundle: Bundle, job: Job) -> None:
        self._bundle, self._loaded = bundle, dict[int, Feed]()
        self._files = [Path(file) for file in job.images] if job.images is not None else None
        self._tensors: Tensors | None = None
        if self._files is None:
            file = job.tensors
            self._tensors = (
                read_tensors(Path(file), bundle.inputs, bundle.num_classes) if file else bundle.tensors()
            )
        self.count = len(self._files or self._tensors or ())

    def load(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            if index not in self._loaded:
                self._loaded[index] = self._read(index)

    def unload(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            self._loaded.pop(index, None)

    def feed(self, indexes: Sequence[int]) -> Feed:
        """One feed of these samples; a single one is not copied."""
        if len(indexes) == 1:
            return self._loaded[indexes[0]]
        parts = [self._loaded[index] for index in indexes]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _read(self, index: int) -> Feed:
        if self._files is None:
            assert self._tensors is not None
            return {name: array[index : index + 1] for name, array in self._tensors.arrays.items()}
        assert self._bundle.input is not None
        image = preprocess(load_image(self._files[index]), self._bundle.input)
        return {self._bundle.inputs[0].name: image[None]}


def main(text: str) -> None:
    """The child: `text` is a Job as JSON. Prints one line of JSON: what ran it, and how long."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # LoadGen waits in C++, where Python's handler does not run
    try:
        facts = _run(Job(**json.loads(text)))
    except BaseException as error:
        _end(error)
    print(json.dumps(facts))


def _run(job: Job) -> dict[str, Any]:
    loadgen = _import()
    bundle = open_bundle(job.root)
    library = Library(bundle, job)
    logs = Path(job.logs)
    logs.mkdir(parents=True, exist_ok=True)
    in_flight = job.in_flight
    with open_runner(bundle, job.variant, job.backend, threads=job.threads, in_flight=in_flight) as runner:
        settings = _settings(loadgen, job, runner, library)
        complete = _completer(loadgen, bundle.class_output if job.accuracy else None)
        issue = _issuer(job, runner, library, complete)
        sut = loadgen.ConstructSUT(_guarded(issue), lambda: None)
        count = min(library.count, MOST_IN_MEMORY)
        qsl = loadgen.ConstructQSL(library.count, count, _guarded(library.load), _guarded(library.unload))
        begin = time.perf_counter()
        loadgen.StartTestWithLogSettings(
            sut, qsl, settings, _log_settings(loadgen, logs), str(logs / "audit")
        )
        seconds = time.perf_counter() - begin
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
        return {
            "backend_version": runner.backend_version,
            "precision": runner.precision,
            "device": runner.device,
            "threads": runner.threads,
            "seconds": seconds,
        }


def _import() -> Any:
    try:
        # Not `mlcommons_loadgen`, an empty package that would take this one's place.
        return import_module("mlperf_loadgen")
    except ImportError as error:
        raise LabError("LoadGen is not installed: pip install mlcommons-loadgen") from error


def _settings(loadgen: Any, job: Job, runner: Runner, library: Library) -> Any:
    """With a guess of how fast the runner is, from which LoadGen knows how many queries to make beforehand:
    too few end a test before its time, and then it is not valid."""
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, job.scenario)
    modes = loadgen.TestMode
    settings.mode = modes.AccuracyOnly if job.accuracy else modes.PerformanceOnly
    settings.min_duration_ms = int(job.seconds * 1000)
    samples = {"SingleStream": 1, "MultiStream": 8}.get(job.scenario, job.batch)
    per_s = _samples_per_s(job, runner, library, samples)
    settings.single_stream_expected_latency_ns = int(1e9 / per_s / _SPARE)
    settings.multi_stream_expected_latency_ns = int(8e9 / per_s / _SPARE)
    settings.multi_stream_samples_per_query = 8
    settings.offline_expected_qps = 1.2 * per_s
    if job.scenario == "Server":
        settings.server_target_qps = job.target_qps
        settings.server_target_latency_ns = int((job.target_latency_ms or 0) * 1e6)
    return settings


def _samples_per_s(job: Job, runner: Runner, library: Library, samples: int) -> float:
    """By a trial that also warms up every size of query that is to come."""
    indexes = [i % library.count for i in range(samples)]
    library.load(indexes)
    sizes = range(1, samples) if job.scenario == "Server" else ()
    for size in sizes:
        for _ in range(job.in_flight):
            answer(runner, library.feed(indexes[:size]))

    def call() -> object:
        return answer(runner, library.feed(indexes))

    warm_up(call, job.warmup_s, job.in_flight)
    trials = [
        measure_throughput(call, samples, min_duration_s=_TRIAL_S, min_count=1, in_flight=job.in_flight)
        for _ in range(_TRIALS)
    ]
    library.unload(indexes)
    return max(done / taken for done, taken in trials)  # others on this machine only make it slower


def _log_settings(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    settings = loadgen.LogSettings()
    settings.log_output = output
    settings.enable_trace = False
    return settings


Complete = Callable[[Sequence[Any], Arrays], None]


def _completer(loadgen: Any, class_output: str | None) -> Complete:
    """Tells LoadGen that queries are done; with `class_output` also which class, as eight bytes each."""

    def complete(queries: Sequence[Any], answers: Arrays) -> None:
        if class_output is None:
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(q.id, 0, 0) for q in queries])
            return
        classes = answers[class_output].argmax(axis=1).astype("<i8")
        place = classes.ctypes.data  # LoadGen copies it before the call returns
        loadgen.QuerySamplesComplete(
            [loadgen.QuerySampleResponse(q.id, place + 8 * i, 8) for i, q in enumerate(queries)]
        )

    return complete


def _issuer(
    job: Job, runner: Runner, library: Library, complete: Complete
) -> Callable[[Sequence[Any]], None]:
    """What LoadGen calls with queries. One stream is answered before it returns; else `in_flight` threads
    take from a queue: pieces of the one query of Offline, of Server as many queries as wait, up to the batch.
    """

    def infer(queries: Sequence[Any]) -> None:
        complete(queries, answer(runner, library.feed([query.index for query in queries])))

    if job.scenario in ("SingleStream", "MultiStream"):
        return infer
    waiting: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        while True:
            taken = waiting.get()
            try:
                while len(taken) < job.batch:
                    taken += waiting.get_nowait()
            except Empty:
                pass
            infer(taken)

    for _ in range(job.in_flight):
        threading.Thread(target=_guarded(work), daemon=True).start()

    def issue(queries: Sequence[Any]) -> None:
        whole = list(queries)
        for start in range(0, len(whole), job.batch):
            waiting.put(whole[start : start + job.batch])

    return issue


def _guarded(function: Callable[..., None]) -> Callable[..., None]:
    def run(*arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            _end(error)

    return run


def _end(error: BaseException) -> NoReturn:
    """Ends the process from whatever thread: exit code 2 for a user's mistake, 1 for ours."""
    if isinstance(error, LabError):
        print(error, file=sys.stderr)
    else:
        traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    os._exit(2 if isinstance(error, LabError) else 1)
