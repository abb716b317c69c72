"""Peak memory of one variant, each in a process of its own: a shared one would show the largest to all."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.backends import open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.child import run_child
from deploy.errors import LabError

_STATUS = Path("/proc/self/status")
_MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """peak_mib: resident, at its highest. device_mib: taken of a GPU's own memory. None: not known."""

    peak_mib: float | None
    device_mib: float | None


def peak_memory(
    bundle: Bundle, variant: str, backend: str, threads: int, batch: int, in_flight: int = 1
) -> Memory:
    """Of a process with Python, the backend's library, the model, and three queries in each thread.

    What is taken of the GPU is told beyond CUDA's own context, by CUDA's count of free memory: what other
    programs take or free meanwhile is in it.
    Raises LabError when the child fails.
    """
    if not _STATUS.exists():
        return Memory(None, None)
    arguments = [str(bundle.root.resolve()), variant, backend, str(threads), str(batch), str(in_flight)]
    child = run_child("deploy.memory", *arguments)
    if child.returncode:
        raise LabError(
            f"variant {variant}: its process ended with {child.returncode} (-9: out of memory) while memory "
            f"was measured at batch {batch}: {child.stderr.strip()[-300:]}; try a smaller batch"
        )
    return Memory(**json.loads(child.stdout.splitlines()[-1]))


def main(root: str, variant: str, backend: str, threads: str, batch: str, in_flight: str) -> None:
    """The child: prints one line of JSON."""
    bundle = open_bundle(root)
    feed = {
        spec.name: np.zeros((int(batch), *(side or 1 for side in spec.shape[1:])), spec.dtype)
        for spec in bundle.inputs
    }
    free = _free_device_bytes(backend)
    count = int(in_flight)
    with (
        open_runner(bundle, variant, backend, threads=int(threads), in_flight=count) as runner,
        ThreadPoolExecutor(count) as callers,
    ):
        for answer in [callers.submit(runner.infer, feed) for _ in range(3 * count)]:
            answer.result()
        # VmHWM and not getrusage's ru_maxrss: that one begins at the parent's memory, kept across exec.
        high = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        left = _free_device_bytes(backend)
    device = None if free is None or left is None else (free - left) / _MIB
    print(json.dumps({"peak_mib": int(high.split()[1]) / 1024, "device_mib": device}))


def _free_device_bytes(backend: str) -> int | None:
    """None where the computing is done in host memory, as on a Jetson, whose GPU has no other."""
    if backend != "tensorrt":
        return None
    from deploy.cuda import find_cuda

    cuda = find_cuda()
    return None if cuda.device().integrated else cuda.free_bytes()
