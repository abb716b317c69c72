"""Peak memory of one variant, each in a process of its own: a shared one would show the largest to all.

The child is `python -m deploy.memory BUNDLE VARIANT BACKEND THREADS BATCH`, and prints MiB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from deploy.backends import open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.errors import LabError

_STATUS = Path("/proc/self/status")


def peak_memory_mib(bundle: Bundle, variant: str, backend: str, threads: int, batch: int) -> float | None:
    """Resident memory at its highest, in MiB: Python, the backend's library, the model, three queries.

    None on a system without /proc. Raises LabError when the child fails.
    """
    if not _STATUS.exists():
        return None
    arguments = [str(bundle.root.resolve()), variant, backend, str(threads), str(batch)]
    child = subprocess.run(
        [sys.executable, "-m", "deploy.memory", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        raise LabError(
            f"variant {variant}: its process ended with {child.returncode} (-9: out of memory) while memory "
            f"was measured at batch {batch}: {child.stderr.strip()[-300:]}; try a smaller batch"
        )
    return float(child.stdout)


def _main(root: str, variant: str, backend: str, threads: str, batch: str) -> None:
    bundle = open_bundle(root)
    shapes = {
        spec.name: ((int(batch), *(side or 1 for side in spec.shape[1:])), spec.dtype)
        for spec in bundle.inputs
    }
    with open_runner(bundle, variant, backend, threads=int(threads)) as runner:
        for _ in range(3):
            runner.infer({name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})
        # VmHWM and not getrusage's ru_maxrss: that one begins at the parent's memory, kept across exec.
        high = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    print(int(high.split()[1]) / 1024)


if __name__ == "__main__":
    _main(*sys.argv[1:])
