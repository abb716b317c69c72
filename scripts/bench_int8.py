"""`python -m scripts.bench_int8 checkpoint=RUN/checkpoint.pt`: our INT8 on this CPU against others'.

Every contender gets the same float file and the same calibration images, and each of its files runs in ONNX
Runtime and in OpenVINO. All take turns at batch 1 and 16. Top-1, the share of images on which the class is
that of FP32, and the signal-to-noise ratio of the logits are of the very files and backends that are timed.

`--onnx FILE --images FILE.npz` takes any float file; the archive holds `calibration` and `images`, float32
N x 3 x size x size, and, for top-1, `labels`, int64 N. With neither it is ResNet-50 at 224 px with random
weights and images: right for times, but its accuracy means nothing. KEY=VALUE as quantize_and_benchmark
takes them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.load import load
from configs.quantize import QuantizeConfig
from deploy.accuracy import top1
from deploy.backends import cpu_threads
from deploy.errors import LabError
from deploy.measure import measure_latency, percentile
from optimize.fidelity import Fidelity, compare_logits
from scripts.bench_lines import libraries_line, ratio_line
from scripts.int8_peers import BOTH, MAKERS, Images, Int8File, make_files

BATCHES = (1, 16)
WARMUP_S = 0.1
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Images to logits."""


@dataclass(frozen=True)
class Subject:
    """What is quantised, and what it is judged by."""

    name: str
    fp32: Path
    calibration: Images
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None


@dataclass
class Entry:
    """One file in one backend."""

    contender: str
    backend: str
    run: Run
    fidelity: Fidelity | None = None
    top1: float | None = None
    p50_ms: dict[int, list[float]] = field(default_factory=dict)
    """By batch, one value a round."""

    @property
    def is_ours(self) -> bool:
        return self.contender.startswith("ours")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_int8", description=__doc__)
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="a float file, in place of a checkpoint")
    parser.add_argument("--images", type=Path, metavar="FILE.npz", help="its images")
    parser.add_argument("--num-images", type=int, default=512, help="for accuracy (default: 512)")
    parser.add_argument("--contenders", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--threads", type=int, help="default: all usable cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn (default: 0.5)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    try:
        run(options)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    threads = cpu_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        given = [word for word in options.overrides if word.startswith("checkpoint=")]
        more = [] if given else ["checkpoint=none"]
        config = load("quantize_and_benchmark", QuantizeConfig, [*options.overrides, *more])
        if given and options.onnx:
            raise LabError("both a checkpoint and --onnx are given: choose one")
        if options.onnx:
            subject = from_files(options.onnx, options.images)
        elif given:
            subject = from_checkpoint(config, options.num_images, work)
        else:
            subject = random_resnet50(config.calibration.num_images, work)
        print(libraries_line("onnxruntime", "openvino", "nncf", "nvidia-modelopt"))
        print(
            f"{subject.name}, {threads} threads, {len(subject.calibration)} calibration images, accuracy on "
            f"{len(subject.images)}, {options.rounds} rounds"
        )
        files = make_files(options.contenders, subject.fp32, subject.calibration, work, config.calibration)
        files.insert(0, Int8File("FP32", subject.fp32, BOTH))
        entries = open_all(files, threads)
        judge(entries, subject)
        take_turns(entries, subject.images, options.rounds, options.seconds)
    print("\n".join(table(entries)))
    print("\n".join(verdict(entries)))


def open_all(files: Iterable[Int8File], threads: int) -> list[Entry]:
    """Says which file a backend does not open, with its reason."""
    entries = []
    for file in files:
        for backend in file.backends:
            try:
                entries.append(Entry(file.contender, backend, OPENERS[backend](file.path, threads)))
            except LabError as error:
                print(f"  {file.contender} in {backend}: left out ({error})")
    return entries


def _in_onnxruntime(path: Path, threads: int) -> Run:
    from deploy.ort import open_session

    session, _ = open_session(path, threads, emulate=False)
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0])


def _in_openvino(path: Path, threads: int) -> Run:
    from deploy.ov import compile_model

    compiled, _ = compile_model(path, threads, emulate=False)
    request: Any = compiled.create_infer_request()
    return lambda images: np.asarray(request.infer([images], share_inputs=True).to_tuple()[0])


OPENERS: dict[str, Callable[[Path, int], Run]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
}


def judge(entries: Sequence[Entry], subject: Subject) -> None:
    """Each against the first, FP32 in ONNX Runtime."""
    step = max(BATCHES)
    batches = [subject.images[i : i + step] for i in range(0, len(subject.images), step)]
    logits = [np.concatenate([entry.run(batch) for batch in batches]) for entry in entries]
    for entry, found in zip(entries, logits, strict=True):
        entry.fidelity = compare(logits[0], found)
        entry.top1 = None if subject.labels is None else top1(found, subject.labels.tolist())


def compare(reference: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> Fidelity:
    """Of logits, N x classes."""
    return compare_logits(lambda _: reference, lambda _: found, [reference])


def take_turns(
    entries: Sequence[Entry], images: npt.NDArray[np.float32], rounds: int, seconds: float
) -> None:
    """The order turns by one each round, so that nobody always follows the same neighbour."""
    for number in range(rounds):
        start = number % len(entries)
        for entry in [*entries[start:], *entries[:start]]:
            for batch in BATCHES:
                given = np.resize(images, (batch, *images.shape[1:]))
                samples = measure_latency(
                    partial(entry.run, given),
                    warmup_s=WARMUP_S,
                    min_duration_s=seconds,
                    min_count=3,
                )
                entry.p50_ms.setdefault(batch, []).append(percentile(samples, 50))


def table(entries: Sequence[Entry]) -> list[str]:
    """Markdown, p50 in ms as median and range over the rounds."""
    heads = ["contender", "backend", *(f"p50 ms, batch {b}" for b in BATCHES), "top-1", "agrees", "SNR, dB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for entry in entries:
        assert entry.fidelity is not None
        times = [
            f"{median(p50):.2f} ({min(p50):.2f} to {max(p50):.2f})"
            for p50 in (entry.p50_ms[batch] for batch in BATCHES)
        ]
        found = [
            "-" if entry.top1 is None else f"{entry.top1:.2%}",
            f"{entry.fidelity.top1_agreement:.2%}",
            f"{entry.fidelity.snr_db:.1f}",
        ]
        lines.append(f"| {' | '.join([entry.contender, entry.backend, *times, *found])} |")
    return lines


def verdict(entries: Sequence[Entry]) -> list[str]:
    """Ours against the fastest peer: of all, and in each backend."""
    lines = []
    for backends in [BOTH, *((one,) for one in BOTH)]:
        where = [e for e in entries if e.backend in backends and e.contender != "FP32"]
        for batch in BATCHES:
            us = fastest([e for e in where if e.is_ours], batch)
            them = fastest([e for e in where if not e.is_ours], batch)
            if us is None or them is None or us.fidelity is None or them.fidelity is None:
                continue
            ours, theirs = (f"{one.contender} in {one.backend}" for one in (us, them))
            what = f"batch {batch}, {' or '.join(backends)}: {ours} over {theirs}"
            lines.append(ratio_line(what, us.p50_ms[batch], them.p50_ms[batch], "at most 1.05"))
            gain = us.fidelity.snr_db - them.fidelity.snr_db
            points = "" if us.top1 is None or them.top1 is None else f", top-1 {us.top1 - them.top1:+.2%}"
            lines.append(f"    its accuracy less the other's: SNR {gain:+.1f} dB{points}; goal: not below 0")
    return lines


def fastest(entries: Sequence[Entry], batch: int) -> Entry | None:
    """By the median over the rounds; None of none."""
    return min(entries, key=lambda e: median(e.p50_ms[batch]), default=None)


def from_checkpoint(config: QuantizeConfig, num_images: int, work: Path) -> Subject:
    """Calibration images are training images, accuracy is of validation images, as in a bundle."""
    from data.calibration import choose_images
    from optimize.export import export_onnx
    from optimize.int8 import Images as RunImages
    from optimize.int8 import calibration_images
    from train.checkpoint import load_checkpoint, read_facts, restore_model
    from train.images import images_of

    assert config.checkpoint is not None  # the schema has seen to that
    path = Path(config.checkpoint)
    facts = read_facts(path)
    data, splits = images_of(facts, work / "data", config.data_root, print)
    images = RunImages(facts.input_spec, data, facts.config.loader, splits)
    fp32 = work / "fp32.onnx"
    export_onnx(restore_model(load_checkpoint(path)), facts.input_spec, fp32)
    chosen = calibration_images(splits.train, config.calibration, config.seed)
    judged = images.labelled(choose_images(splits.val, num_images, config.seed))
    return Subject(
        name=f"{facts.config.model.name} at {facts.input_spec.size} px",
        fp32=fp32,
        calibration=[image[None] for batch in images.batches(chosen) for image in batch],
        images=np.concatenate([found for found, _ in judged]),
        labels=np.concatenate([labels for _, labels in judged]),
    )


def from_files(path: Path, archive: Path | None) -> Subject:
    """Raises LabError for an archive that is not there or lacks images."""
    if archive is None:
        raise LabError("--onnx needs --images FILE.npz with `calibration` and `images`")
    try:
        with np.load(archive, allow_pickle=False) as arrays:
            calibration, images = arrays["calibration"], arrays["images"]
            labels = arrays.get("labels")
    except (OSError, KeyError, ValueError) as error:
        raise LabError(f"{archive}: {error}; it must hold `calibration` and `images`, float32") from error
    if (
        calibration.dtype != np.float32
        or images.dtype != np.float32
        or not len(images)
        or not len(calibration)
    ):
        found = f"{calibration.dtype} {calibration.shape} and {images.dtype} {images.shape}"
        raise LabError(
            f"{archive}: `calibration` and `images` are {found}, must be float32, one image or more"
        )
    return Subject(path.name, path, [image[None] for image in calibration], images, labels)


def random_resnet50(num_calibration: int, work: Path) -> Subject:
    import torch
    import torchvision

    from deploy.input_spec import InputSpec
    from optimize.export import export_onnx

    torch.manual_seed(0)
    spec = InputSpec(224, 224, (0.5,) * 3, (0.5,) * 3, tuple(f"class-{i}" for i in range(1000)))
    fp32 = work / "fp32.onnx"
    export_onnx(torchvision.models.resnet50(), spec, fp32)
    rng = np.random.default_rng(0)
    drawn = [rng.normal(size=(1, 3, 224, 224)).astype(np.float32) for _ in range(num_calibration)]
    images = rng.normal(size=(16, 3, 224, 224)).astype(np.float32)
    return Subject("resnet50 at 224 px with random weights", fp32, drawn, images, None)


if __name__ == "__main__":
    sys.exit(main())
