"""`python -m scripts.bench_frames`: what a picture of the demo costs before and beside its inference.

1. Reading a frame of 640 x 480 px from ffmpeg's and GStreamer's pipe: processor time of our process.
2. Preparing it for a network of 224 px.
3. FP32 and INT8 of a ResNet-18 in turn, as the demo runs them, beside each alone: with threads that rest
   between two queries (the demo's) and with threads that wait busily (a benchmark's).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from threading import Event

import numpy as np

from deploy.backends import cpu_threads, open_runner
from deploy.bundle import Bundle
from deploy.demo.commands import FRAMES, Command
from deploy.demo.frames import Frames
from deploy.input_spec import InputSpec
from deploy.preprocess import preprocess
from scripts.bench_lines import libraries_line, ratio_line
from scripts.bench_runners import bundle_of

HEIGHT, WIDTH = 480, 640
COUNT = 300
SPEC = InputSpec(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ("a", "b"))
_TEST = f"testsrc=size={WIDTH}x{HEIGHT}:rate=30:duration={COUNT / 30:g}"
COMMANDS = (
    Command(
        (
            *("ffmpeg", "-v", "error", "-f", "lavfi", "-i", _TEST),
            *("-f", "image2pipe", "-c:v", "ppm", "-"),
        ),
        "ppm",
    ),
    Command(
        (
            *("gst-launch-1.0", "-q", "videotestsrc", f"num-buffers={COUNT}", "!"),
            *(f"video/x-raw,format=RGB,width={WIDTH},height={HEIGHT}", "!"),
            *("multipartmux", "boundary=frame", "!", "fdsink", f"fd={FRAMES}"),
        ),
        "parts",
        width=WIDTH,
    ),
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_frames", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--queries", type=int, default=50, help="of each lane in a round (default: 50)")
    parser.add_argument("--threads", type=int, help="default: all usable cores")
    options = parser.parse_args()
    print(libraries_line("onnxruntime", "numpy"))
    for command in COMMANDS:
        program = command.argv[0]
        print(
            f"  {program}: {read_ms(command):.2f} ms a frame" if shutil.which(program) else f"  no {program}"
        )
    print(f"  preprocess to {SPEC.size} px: {prepare_ms():.2f} ms (median)")
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of("resnet18", Path(folder, "bundle"))
        for in_turn, what in ((True, "threads rest"), (False, "threads wait busily")):
            print(f"in turn against alone, {what}:")
            for line in turn_lines(bundle, options.threads, in_turn, options.rounds, options.queries):
                print(line)
    return 0


def read_ms(command: Command) -> float:
    with Frames(command, Event()) as frames:
        began = time.process_time()
        count = sum(1 for _ in frames)
        spent = time.process_time() - began
    if count != COUNT:
        raise RuntimeError(f"{command.argv[0]}: {count} frames of {COUNT}: {frames.reason}")
    return 1e3 * spent / count


def prepare_ms() -> float:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return median(timed(lambda: preprocess(image, SPEC)) for _ in range(200))


def turn_lines(bundle: Bundle, threads: int | None, in_turn: bool, rounds: int, queries: int) -> list[str]:
    names = [variant.name for variant in bundle.variants]
    image = np.zeros((1, 3, SPEC.size, SPEC.size), np.float32)
    alone: dict[str, list[float]] = {name: [] for name in names}
    together: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        runs = {}
        for name in names:
            opened = open_runner(bundle, name, threads=cpu_threads(threads), in_turn=in_turn)
            runner = stack.enter_context(opened)
            runs[name] = lambda runner=runner: runner.infer({"image": image})
        for _ in range(rounds):
            for name, run in runs.items():
                alone[name].append(median(timed(run) for _ in range(queries)))
            turns = [[timed(run) for run in runs.values()] for _ in range(queries)]
            for name, latencies in zip(names, zip(*turns, strict=True), strict=True):
                together[name].append(median(latencies))
    return [
        ratio_line(f"{name} {median(together[name]):.2f} ms", together[name], alone[name], "1")
        for name in names
    ]


def timed(call: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
