"""`python -m scripts.bench_tensorrt BUNDLE`: our TensorRT runner's p50 against the bare library's.

`in place` is ours without the copy into pinned memory, which trtexec does not count either. `enqueue` is a
loop of copy in, execute_async_v3, copy out, wait, over pinned memory; `graph` the same as one CUDA graph.
They take turns with ours. trtexec, where it is installed, times the same engine file afterwards. With
--portable a TensorRT-RTX engine for compute capability 8.0 is tried on this GPU, whatever that is.
It needs what `python -m deploy` needs, and no torch.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np

from deploy.bundle import Bundle, open_bundle
from deploy.cuda import CudaError, find_cuda
from deploy.cuda_buffer import Buffer
from deploy.engine import Target, find_target, ready_engine, set_batch
from deploy.errors import LabError
from deploy.measure import measure_latency, percentile
from deploy.runner import Feed, TensorSpec
from deploy.trt import TensorRTRunner
from deploy.trt_api import find_tensorrt

ROUNDS = 7
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"  # where JetPack and Debian put it, off the path
Call = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_tensorrt", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--variant", nargs="+", metavar="NAME", help="(default: those made for tensorrt)")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender's turn (default: 0.5)")
    parser.add_argument("--portable", action="store_true", help="try an engine for 8.0 here, and no more")
    options = parser.parse_args()
    try:
        bundle = open_bundle(options.bundle)
        target = find_target(find_tensorrt(), find_cuda())
        print(f"{target.api} on {target}")
        for name in options.variant or [v.name for v in bundle.variants if v.backend == "tensorrt"]:
            if options.portable:
                print(f"{name}: {try_portable(bundle, name, target)}")
            else:
                compare(bundle, name, target, options.batch, options.seconds)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def compare(bundle: Bundle, name: str, target: Target, batch: int, seconds: float) -> None:
    """Print p50 in ms of each contender, and ours over each of the others, as medians over the rounds."""
    path = ready_engine(bundle, name, target, None, print).path
    with contenders(path, target, batch) as calls:
        times: dict[str, list[float]] = {contender: [] for contender in calls}
        for number in range(ROUNDS):
            names = list(calls)
            for contender in names[number % len(names) :] + names[: number % len(names)]:
                samples = measure_latency(
                    calls[contender], warmup_s=seconds / 5, min_duration_s=seconds, min_count=10
                )
                times[contender].append(percentile(samples, 50))
    for contender, found in times.items():
        print(f"{name}, batch {batch}, {contender}: p50 {median(found):.4f} ms")
    for contender in list(times)[1:]:
        ratios = [a / b for a, b in zip(times["ours"], times[contender], strict=True)]
        print(
            f"{name}: ours / {contender} {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
            "goal: at most 1.03"
        )
    if (found_ms := trtexec_ms(path, bundle, batch, seconds)) is not None:
        print(f"{name}, batch {batch}, trtexec: median {found_ms:.4f} ms")
        print(f"{name}: ours / trtexec {median(times['ours']) / found_ms:.3f}; goal: at most 1.03")


@contextmanager
def contenders(path: Path, target: Target, batch: int) -> Iterator[dict[str, Call]]:
    """One query of `batch` images of each, by name; ours first."""
    with TensorRTRunner(path, target) as runner:
        feed = zeros(runner.inputs, batch)
        with bare(path, target, feed, batch) as (enqueue, graph):
            staged = runner.staging(batch)
            yield {
                "ours": lambda: runner.infer(feed),
                "in place": lambda: runner.infer(staged),
                "enqueue": enqueue,
                "graph": graph,
            }


def zeros(inputs: Sequence[TensorSpec], batch: int) -> Feed:
    return {
        spec.name: np.zeros([batch if side is None else side for side in spec.shape], spec.dtype)
        for spec in inputs
    }


@contextmanager
def bare(path: Path, target: Target, feed: Feed, batch: int) -> Iterator[tuple[Call, Call]]:
    """(a query by execute_async_v3, the same as a CUDA graph), with nothing around it."""
    api, cuda = target.api, target.cuda
    engine = api.open_engine(path.read_bytes(), str(path))
    context = api.context(engine)
    set_batch(engine, context, batch)
    stream = cuda.stream()
    buffers: dict[str, tuple[Buffer, int]] = {}
    integrated = target.device is not None and target.device.integrated
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        dims = context.get_tensor_shape(name)
        dtype = np.dtype(api.dtype(engine.get_tensor_dtype(name), name))
        size = int(np.prod([dims[j] for j in range(len(dims))])) * dtype.itemsize
        buffers[name] = Buffer(cuda, size, zero_copy=integrated), size
        context.set_tensor_address(name, buffers[name][0].device)

    def queue() -> None:
        for name, (buffer, size) in buffers.items():
            if name in feed:
                buffer.upload(size, stream)
        if not context.execute_async_v3(stream):
            raise LabError(f"{path}: {api} does not run it: {api.log.take()}")
        for name, (buffer, size) in buffers.items():
            if name not in feed:
                buffer.download(size, stream)

    def enqueue() -> None:
        queue()
        cuda.synchronize(stream)

    enqueue()
    cuda.begin_capture(stream)
    queue()
    graph = cuda.end_capture(stream)

    def launch() -> None:
        cuda.launch(graph, stream)
        cuda.synchronize(stream)

    try:
        yield enqueue, launch
    finally:
        cuda.destroy_graph(graph)
        for buffer, _ in buffers.values():
            buffer.close()
        cuda.destroy_stream(stream)


def trtexec_ms(path: Path, bundle: Bundle, batch: int, seconds: float) -> float | None:
    """The median latency that trtexec tells of the engine, None where there is no trtexec."""
    program = shutil.which("trtexec") or (TRTEXEC if Path(TRTEXEC).exists() else None)
    if program is None:
        return None
    shapes = [f"{i.name}:{'x'.join(map(str, (batch, *i.shape[1:])))}" for i in bundle.inputs]
    arguments = [
        f"--loadEngine={path}", f"--shapes={','.join(shapes)}", "--useCudaGraph",
        f"--duration={max(1, round(seconds * ROUNDS))}",
    ]  # fmt: skip
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return read_trtexec(done.stdout)


def read_trtexec(text: str) -> float | None:
    """The median of its line on latency: copy in, compute, copy out, in ms."""
    found: Sequence[str] = re.findall(r"\bLatency: min = .*?\bmedian = ([\d.]+) ms", text)
    return float(found[0]) if found else None


def try_portable(bundle: Bundle, name: str, target: Target) -> str:
    """Whether an engine that TensorRT-RTX built for compute capability 8.0 runs on this machine's GPU."""
    elsewhere = find_target(target.api, target.cuda, ("8.0",))
    path = ready_engine(bundle, name, elsewhere, None, print).path
    feed = zeros(bundle.inputs, 1)
    try:
        with bare(path, target, feed, 1) as (enqueue, _):
            samples = measure_latency(enqueue, warmup_s=0.2, min_duration_s=0.5, min_count=10)
    except (LabError, CudaError) as error:
        return f"an engine for 8.0 does not run on {target}: {error}"
    return f"an engine for 8.0 runs on {target}, p50 {percentile(samples, 50):.4f} ms"


if __name__ == "__main__":
    sys.exit(main())
