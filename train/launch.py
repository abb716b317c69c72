"""Runs as processes of their own: how they are started, where they run, and how they end."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from configs.schema import TrainConfig
from deploy.errors import LabError

_VARIABLES = frozenset(
    {
        "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
        "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
    }
)  # fmt: skip
_PREFIXES = ("TORCHELASTIC_", "PET_")
"""PET_ is what torchrun reads its own options from: a cluster's would pass for ours."""
_POLL_S = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Child:
    command: Sequence[str]
    """`python` or `torchrun` and its arguments, as one types them."""
    log: Path | None = None
    """Gets what the child prints, after what is there; null: it prints where we do."""


@dataclass(frozen=True)
class Place:
    """What one child at a time has to itself. null: all that its parent has."""

    gpus: str | None = None
    """As CUDA_VISIBLE_DEVICES has them."""
    cores: frozenset[int] | None = None


def launched() -> bool:
    """Whether a launcher, torchrun or horovodrun, started this process."""
    return "RANK" in os.environ or "HOROVOD_RANK" in os.environ


def require_no_launcher() -> None:
    """Raises LabError where the ranks of one run are asked to make several."""
    if launched():
        raise LabError(
            "several runs, but a launcher started this process: start them with plain python, and "
            "each with several processes by processes=N"
        )


def train_command(config: TrainConfig, overrides: Sequence[str]) -> list[str]:
    """What starts a run of this config: repeatable by hand, whatever started us."""
    # The parent of a cross-validation starts each of its folds so.
    under_torchrun = (config.processes or 1) > 1 and not is_cross_validation(config)
    launcher = ["torchrun", "--standalone", f"--nproc-per-node={config.processes}"]  # which finds a free port
    return [*(launcher if under_torchrun else ["python"]), "-m", "train", *overrides]


def is_cross_validation(config: TrainConfig) -> bool:
    return config.cv.folds > 0 and config.cv.fold is None


def run_children(
    children: Sequence[Child],
    places: Sequence[Place] = (Place(),),
    ended: Callable[[int, int], None] = lambda index, code: None,
) -> list[int]:
    """Run each in one of the places, as many at a time as there are; their exit codes, below 0 for a signal.

    `ended` hears (index, code) as they end. SIGTERM and SIGINT are passed on; no other child starts, and when
    those that run have ended, SystemExit is raised with the shell's code of the signal. Where this process is
    killed, its children get SIGTERM.
    """
    codes = [0] * len(children)
    waiting = deque(range(len(children)))
    free = list(places)
    running: dict[int, tuple[subprocess.Popen[bytes], Place]] = {}
    with _passing_on(running) as received:
        try:
            while running or (waiting and not received):
                while free and waiting and not received:
                    index, place = waiting.popleft(), free.pop(0)
                    running[index] = (_start(children[index], place), place)
                time.sleep(_POLL_S)
                for index, (process, place) in list(running.items()):
                    code = process.poll()
                    if code is not None:
                        del running[index]
                        free.append(place)
                        codes[index] = code
                        ended(index, code)
        finally:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()
    if received:
        raise SystemExit(128 + received[0])
    return codes


def _start(child: Child, place: Place) -> subprocess.Popen[bytes]:
    word, *arguments = child.command
    executable = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}[word]
    environ = {k: v for k, v in os.environ.items() if k not in _VARIABLES and not k.startswith(_PREFIXES)}
    if place.gpus is not None:
        environ["CUDA_VISIBLE_DEVICES"] = place.gpus
    output = None
    if child.log is not None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        output = child.log.open("ab")
        output.write(f"$ {shlex.join(child.command)}\n".encode())
        output.flush()
    try:
        return subprocess.Popen(
            [sys.executable, *executable, *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that a terminal's Ctrl-C comes once, from us
            preexec_fn=partial(_settle, os.getpid(), place.cores),
        )
    finally:
        if output is not None:
            output.close()


_libc = ctypes.CDLL(None)


def _settle(parent: int, cores: frozenset[int] | None) -> None:
    """In the child, before it becomes the command."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        if cores is not None:
            os.sched_setaffinity(0, cores)


@contextmanager
def _passing_on(running: dict[int, tuple[subprocess.Popen[bytes], Place]]) -> Iterator[list[int]]:
    """Yields the signals that came, and sends each to the children that run."""
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process, _ in list(running.values()):
            process.send_signal(number)

    # A handler that somebody has set stays: submitit's knows what its cluster means by the signal.
    ours = [s for s in _SIGNALS if signal.getsignal(s) in (signal.SIG_DFL, signal.default_int_handler)]
    before = {number: signal.signal(number, pass_on) for number in ours}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
