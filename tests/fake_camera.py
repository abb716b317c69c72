"""A mock of a camera: a shell that writes frames as ffmpeg does (binary PPM, netpbm's ppm(5)) and then fails.

It stands in for ffmpeg or gst-launch with a camera that is pulled out, hangs or has a driver that crashes. It
proves how such a child is read, ended and started again. It proves nothing of V4L2, Argus or GStreamer.
"""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.demo.commands import Command

_FRAMES = r"""
echo $$ >> "$0"
n=1
while [ $n -le "$1" ]; do printf 'P6\n2 2\n255\n%012d' $n; n=$((n + 1)); done
"""
_ENDS = {
    "stop": "exit 0",
    "die": "echo first words >&2; echo the cable is loose >&2; exit 3",
    "silent": "exit 3",
    "cut": r"printf 'P6\n2 2\n255\nxyz'",
    "cut header": r"printf 'P6\n2'",
    "hang": "exec sleep 600",
    "deaf": "trap '' INT; exec sleep 600",
    "orphan": 'sleep 600 & echo $! >> "$0"; wait',
    "chatter": "while :; do echo on and on; done >&2",
    "noisy": r"yes words | head -c 300000 >&2; printf 'P6\n2 2\n255\n%012d' 4",
    "babble": "echo Setting pipeline to PLAYING; echo New clock; echo and so on",
    "huge": r"printf 'P6\n999999999 999999999\n255\n'",
    "dies once": '[ $(wc -l < "$0") -eq 1 ] && exit 3; exec sleep 600',
}


def fake_camera(log: Path, count: int, end: str) -> Command:
    """Writes `count` frames of 2 x 2 px, and at the start a line with its process id to `log`."""
    return Command(("sh", "-c", f"{_FRAMES}{_ENDS[end]}", str(log), str(count)), "ppm")


def frame_number(image: NDArray[Any]) -> int:
    """Which frame of the fake camera it is, from 1."""
    return int(np.ascontiguousarray(image).tobytes())


def starts(log: Path) -> list[int]:
    """The ids of the processes that were started so far."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def all_end(log: Path, within_s: float = 30.0) -> bool:
    """Whether all that were started come to their end: a signal takes a moment to arrive."""
    deadline, pause = time.monotonic() + within_s, Event()
    while any(map(_is_alive, starts(log))) and time.monotonic() < deadline:
        pause.wait(0.01)
    return not any(map(_is_alive, starts(log)))


def _is_alive(pid: int) -> bool:
    """Zombies are not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
