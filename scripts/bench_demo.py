"""`python -m scripts.bench_demo`: what the demo's page costs, at 640 x 480 px through the true show.

1. Time of a picture's inference (FP32 and INT8 of a ResNet-18, one after the other) with a viewer, less that
   without one, in turns: from a source of 25 pictures a second, as a camera's, and from one that always has
   the next. And how much longer the whole turn of a picture takes in the second, preparing included.
2. The frame rate of each of 8 viewers beside that of one, and the memory of the process that serves them.

The viewers are another process on this machine, and take their part of its cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event
from unittest.mock import patch

import numpy as np
from sklearn.datasets import load_sample_images

from deploy.backends import cpu_threads
from deploy.bundle import Bundle
from deploy.demo import pipeline
from deploy.demo.messages import frame, stream_json
from deploy.demo.moving import Tell
from deploy.demo.pictures import encode_frame
from deploy.demo.server import serve
from deploy.demo.show import Lane, Show
from deploy.demo.sources import Source
from deploy.preprocess import Image
from scripts.bench_lines import libraries_line
from scripts.bench_runners import bundle_of

FPS = 25.0
NUM_VIEWERS = 8
LANES = (Lane("fp32", "onnxruntime"), Lane("int8-cpu", "onnxruntime"))
GOAL_MS = 3.0
SETTLE_S = 1.0
"""Before anything is timed, and before the memory is read for the first time."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_demo", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each figure (default: 60)")
    parser.add_argument("--rounds", type=int, default=6, help="turns with and without a viewer (default: 6)")
    parser.add_argument("--threads", type=int, help="default: all usable cores")
    options = parser.parse_args()
    threads = cpu_threads(options.threads)
    print(libraries_line("onnxruntime", "pillow", "uvicorn", "numpy"))
    print(f"ResNet-18, FP32 and INT8, {threads} threads; JPEG of 640 x 480 px")
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of("resnet18", Path(folder, "bundle"))
        turn_s = options.seconds / (2 * options.rounds)
        for what, fps in ((f"{FPS:g} pictures a second", FPS), ("the next picture at once", None)):
            with synthetic_show(bundle, threads, fps) as show, serve(show, title="bench") as serving:
                if fps == FPS:
                    print(own_work_line(show))
                print("\n".join(added_lines(what, show, serving.port, options.rounds, turn_s)), flush=True)
        with synthetic_show(bundle, threads, FPS) as show, serve(show, title="bench") as serving:
            print("\n".join(viewers_lines(serving.port, options.seconds)))
    return 0


@contextmanager
def synthetic_show(bundle: Bundle, threads: int, fps: float | None) -> Iterator[Show]:
    """fps: None has the next picture as soon as one was taken, and the show drops what it cannot take."""
    china = load_sample_images().images[0]
    tall = np.concatenate([china, china[: 480 - len(china)]])
    pictures = [np.ascontiguousarray(np.roll(tall, 9 * i, axis=1)) for i in range(24)]

    def play(halt: Event, tell: Tell) -> Generator[Image, None, None]:
        tell("playing", None)
        number, due = 0, time.monotonic()
        while not halt.is_set():
            yield pictures[number % len(pictures)]
            number += 1
            due += 1 / (fps or 200.0)
            halt.wait(max(0.0, due - time.monotonic()))

    source = Source("synthetic", play)
    with (
        patch.object(pipeline, "find_source", lambda text, width, loop: source),
        pipeline.open_show(bundle, "synthetic", LANES, threads) as show,
    ):
        yield show


def own_work_line(show: Show) -> str:
    """Processor time, which other processes hardly disturb, of all that is done once a picture."""
    while (shown := show.latest()) is None:
        time.sleep(0.01)
    spent = []
    for _ in range(50):
        began = time.thread_time()
        frame(stream_json("bench", shown, show.status()), encode_frame(shown.image))
        spent.append(1e3 * (time.thread_time() - began))
    return f"  JPEG and message of a picture, once for all viewers: {median(spent):.2f} ms of one core"


def added_lines(what: str, show: Show, port: int, rounds: int, turn_s: float) -> list[str]:
    alone: list[tuple[float, float]] = []
    watched: list[tuple[float, float]] = []
    for number in range(rounds):
        for is_watched in (False, True) if number % 2 == 0 else (True, False):
            if is_watched:
                with viewers(port, 1, seconds=3600):
                    watched.append(timed(show, turn_s))
            else:
                alone.append(timed(show, turn_s))
    lines = []
    for name, index in (("inference", 0), ("the whole turn", 1)):
        added = [with_one[index] - without[index] for with_one, without in zip(watched, alone, strict=True)]
        lines.append(
            f"  {what}: {name} {median(a[index] for a in alone):.2f} ms, "
            f"with a viewer {median(w[index] for w in watched):.2f} ms; added {median(added):+.2f} ms "
            f"({min(added):+.2f} to {max(added):+.2f}); goal: less than {GOAL_MS:g} ms"
        )
    return lines


def timed(show: Show, seconds: float) -> tuple[float, float]:
    """Medians in ms over the pictures of so many seconds: of inference, and from the last picture to this."""
    inference: list[float] = []
    ends: list[float] = []

    def note() -> None:
        shown = show.latest()
        assert shown is not None
        ends.append(time.perf_counter())
        inference.append(sum(answer.latency_ms for answer in shown.answers))

    time.sleep(SETTLE_S)
    forget = show.on_new(note)
    time.sleep(seconds)
    forget()
    return median(inference), 1e3 * median(np.diff(ends).tolist())


def viewers_lines(port: int, seconds: float) -> list[str]:
    one, _, _ = rates(port, 1, seconds)
    many, before, after = rates(port, NUM_VIEWERS, seconds)
    worst = min(many) / one[0]
    return [
        f"  one viewer, {seconds:g} s: {one[0]:.2f} pictures a second",
        f"  {NUM_VIEWERS} viewers, {seconds:g} s: {min(many):.2f} to {max(many):.2f}, the slowest "
        f"{100 * (worst - 1):+.1f} % of one; goal: within 10 %",
        f"  memory with {NUM_VIEWERS} viewers: {before:.1f} MB, at the end {after:.1f} MB "
        f"({after - before:+.1f} MB); goal: flat",
    ]


def rates(port: int, count: int, seconds: float) -> tuple[list[float], float, float]:
    """Pictures a second of each viewer; memory in MB once they run, and at the end."""
    with viewers(port, count, seconds) as process:
        time.sleep(SETTLE_S)
        before = memory_mb()
        out, _ = process.communicate()
        return [float(word) for word in out.split()], before, memory_mb()


@contextmanager
def viewers(port: int, count: int, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A process of so many, once each has a picture; it is ended here where it has not ended itself."""
    command = [sys.executable, "-m", "scripts.bench_demo_viewers", str(port), str(count), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def memory_mb() -> float:
    pages: Sequence[str] = Path("/proc/self/statm").read_text().split()
    return int(pages[1]) * 4096 / 1e6


if __name__ == "__main__":
    sys.exit(main())
