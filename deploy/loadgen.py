"""A variant under MLPerf's LoadGen: its arrivals, its clock and its verdict, with our model.

What comes out is no official MLPerf result: those are of MLPerf's own models and data sets, run for ten
minutes, and reviewed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from deploy.backends import check_backend, cpu_threads, open_runner, usual_in_flight
from deploy.bench import DEFAULT_WARMUP_S
from deploy.bundle import Bundle
from deploy.child import run_child
from deploy.device_state import changes, read_state
from deploy.errors import LabError
from deploy.loadgen_log import read_classes, read_result
from deploy.loadgen_sut import Job
from deploy.machine import describe_machine
from deploy.measure import PERCENTILE_RULE
from deploy.results import Accuracy, Measurement, Rule, States
from deploy.tensors import read_tensors

SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
DEFAULT_BATCH = {"SingleStream": 1, "MultiStream": 8, "Offline": 32, "Server": 8}
DEFAULT_SECONDS = 10.0
DEFAULT_LATENCY_MS = 15.0  # of Server, as MLPerf has it for ResNet-50
_CLOCK = "LoadGen's, from its query to its being told of the answer; no decoding or preprocessing"


def run_loadgen(
    bundle: Bundle,
    variant: str,
    scenario: str,
    *,
    backend: str = "onnxruntime",
    threads: int | None = None,
    in_flight: int | None = None,
    batch: int | None = None,
    seconds: float = DEFAULT_SECONDS,
    warmup_s: float = DEFAULT_WARMUP_S,
    target_qps: float | None = None,
    target_latency_ms: float | None = None,
    accuracy: bool = False,
    images: Sequence[tuple[Path, int]] = (),
    tensors: Path | None = None,
    logs: Path,
) -> Measurement:
    """A test of performance, and with `accuracy` one in which every sample is answered once.

    in_flight, batch: inferences at a time and samples of one, of Offline and Server. seconds: the least.
    target_qps, target_latency_ms: of Server, whose queries arrive by a Poisson process.
    images: files and their class indexes; tensors: an .npz file; with neither, the bundle's own samples.
    logs: a folder for LoadGen's files; those of the test of accuracy lie in `accuracy` below it.

    Raises LabError, with LoadGen's own files left as they are.
    """
    job = Job(
        root=str(bundle.root.resolve()),
        variant=bundle.variant(variant).name,
        backend=backend,
        threads=threads,
        in_flight=_in_flight(scenario, backend, threads, in_flight),
        scenario=scenario,
        accuracy=False,
        seconds=seconds,
        warmup_s=warmup_s,
        batch=DEFAULT_BATCH[scenario] if batch is None else batch,
        target_qps=target_qps,
        target_latency_ms=DEFAULT_LATENCY_MS if target_latency_ms is None else target_latency_ms,
        images=[str(path.resolve()) for path, _ in images] or None,
        tensors=str(tensors.resolve()) if tensors else None,
        logs=str(logs),
    )
    _check(job)
    labels = _labels(bundle, images, tensors) if accuracy else []
    if backend == "tensorrt":
        with open_runner(bundle, variant, backend):
            pass  # an engine that must be built is built, and told of, before the child, which is silent
    before = read_state()
    facts = _child(job)
    after = read_state()
    result = read_result(logs)
    found = Accuracy()
    if accuracy:
        second = replace(job, accuracy=True, logs=str(logs / "accuracy"))
        _child(second)
        found = _accuracy(Path(second.logs), labels)
    machine = describe_machine()
    machine["device"] = machine["device"] or facts["device"]
    return Measurement(
        kind="loadgen",
        variant=variant,
        backend=backend,
        backend_version=str(facts["backend_version"]),
        made_for=bundle.variant(variant).backend,
        precision=str(facts["precision"] or bundle.variant(variant).precision),
        batch=job.batch,
        threads=int(facts["threads"]),
        machine=machine,
        rule=Rule(
            warmup_s=warmup_s,
            duration_s=float(facts["seconds"]),
            count=result.num_queries,
            rounds=1,
            percentile=f"LoadGen's: sorted[floor(p n)]; ours: {PERCENTILE_RULE}",
            inside_the_clock=_CLOCK,
        ),
        latency=None,
        throughput_images_per_s=None,
        peak_memory_mib=None,
        accuracy=found,
        file_bytes=bundle.path(variant).stat().st_size,
        sha256=bundle.files[bundle.variant(variant).file],
        latency_samples_ms=(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        in_flight=job.in_flight,
        states=States(before, (), after, tuple(changes(before, (), after))),
        loadgen=result,
    )


def _in_flight(scenario: str, backend: str, threads: int | None, asked: int | None) -> int:
    check_backend(backend)
    if scenario not in SCENARIOS:
        raise LabError(f"scenario {scenario!r} is not known; there are: {', '.join(SCENARIOS)}")
    if scenario in ("SingleStream", "MultiStream"):
        if asked not in (None, 1):
            raise LabError(
                f"{asked} queries in flight: {scenario} sends the next when one is answered; leave it out"
            )
        return 1
    return usual_in_flight(backend, cpu_threads(threads)) if asked is None else asked


def _check(job: Job) -> None:
    if not 0 < job.seconds <= 3600:
        raise LabError(f"seconds {job.seconds}: must be more than 0 and at most 3600")
    if job.batch < 1 or (
        job.scenario in ("SingleStream", "MultiStream") and job.batch != DEFAULT_BATCH[job.scenario]
    ):
        raise LabError(
            f"batch {job.batch}: of {job.scenario} it is {DEFAULT_BATCH[job.scenario]}; leave it out"
            if job.batch > 0
            else f"batch {job.batch}: must be at least 1"
        )
    if job.scenario != "Server":
        return
    if job.target_qps is None:
        raise LabError(
            "Server: how many queries a second are to arrive? give --target-qps, and --target-latency-ms"
        )
    if not 0 < job.target_qps <= 1e6:
        raise LabError(f"target of {job.target_qps} queries/s: must be more than 0 and at most 1,000,000")
    if not 0 < (job.target_latency_ms or 0) <= 60_000:
        raise LabError(f"target latency {job.target_latency_ms} ms: must be more than 0 and at most 60,000")


def _labels(bundle: Bundle, images: Sequence[tuple[Path, int]], tensors: Path | None) -> list[int]:
    if images:
        found = [label for _, label in images]
    elif tensors is not None:
        labels = read_tensors(tensors, bundle.inputs, bundle.num_classes).labels
        found = [] if labels is None else labels.tolist()
    else:
        found = [sample.label for sample in bundle.samples] or list(bundle.labels)
    if bundle.class_output is None or not found:
        raise LabError(
            f"{bundle.root}: no classes to be right about: leave out --accuracy, or give labelled samples"
        )
    return found


def _child(job: Job) -> dict[str, Any]:
    done = run_child("deploy.loadgen_sut", json.dumps(asdict(job)))
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.strip()
    if done.returncode == 2:
        raise LabError(said)
    raise LabError(
        f"variant {job.variant}: LoadGen's process ended with {done.returncode} (-9: out of memory): "
        f"{said.splitlines()[-1] if said else 'without a word'}; its logs: {job.logs}"
    )


def _accuracy(folder: Path, labels: Sequence[int]) -> Accuracy:
    """Top-1 from LoadGen's own log of the answers."""
    classes = read_classes(folder)
    if sorted(classes) != list(range(len(labels))):
        raise LabError(
            f"{folder}: LoadGen logged answers to {len(classes)} of {len(labels)} samples; run it again"
        )
    right = np.array([classes[i] == label for i, label in enumerate(labels)])
    return Accuracy(top1=float(right.mean()), num_images=len(labels))
