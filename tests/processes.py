"""Real processes for tests: commands as a user gives them, and groups of gloo ranks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours without a launcher's variables, with the repository importable from any folder."""
    plain = {k: v for k, v in os.environ.items() if k not in _LAUNCHER and not k.startswith("HOROVOD_")}
    return plain | {"PYTHONPATH": str(ROOT)} | dict(extra or {})


def python(
    *arguments: str, cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` to its end, whatever the exit code."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(env),
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


def torchrun(
    num_processes: int, *arguments: str, cwd: Path = ROOT, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`torchrun --standalone --nproc-per-node=N ARGUMENTS` to its end."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return python(*launcher, *arguments, cwd=cwd, timeout=timeout, env={"OMP_NUM_THREADS": "1"})


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """`function(*arguments)` on `world` ranks with a launcher's environment; their results in order.

    `function` must be importable. Fails where any rank ends with a code other than 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        # Files, because a pipe that nobody reads yet would hold a rank back before its end.
        results = [Path(folder, str(rank)) for rank in range(world)]
        processes = [
            context.Process(target=_rank, args=(function, arguments, rank, world, port, results[rank]))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        assert codes == [0] * world, f"exit codes of the ranks: {codes}"
        return [pickle.loads(result.read_bytes()) for result in results]


def _rank(
    function: Callable[..., Any], arguments: Sequence[Any], rank: int, world: int, port: int, result: Path
) -> None:
    values = (rank, world, rank, world, "127.0.0.1", port)
    os.environ.update({name: str(value) for name, value in zip(_LAUNCHER, values, strict=True)})
    import torch

    torch.set_num_threads(1)
    result.write_bytes(pickle.dumps(function(*arguments)))
