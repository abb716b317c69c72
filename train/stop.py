"""SIGTERM asks for an end: the loop saves and the process exits with 0. Where the loop cannot be reached, the
process ends all the same."""

from __future__ import annotations

import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType, TracebackType

from train.watchdog import dump_stacks

GRACE_S = 12.0
"""A rank whose peer is gone hangs in a collective. It must be over well within the 30 s after which torchrun
kills, and a step of the loop must fit in."""


class StopRequest:
    """Context in which SIGTERM sets `requested`.

    Python runs a signal handler only between byte codes, so a process inside a collective never hears it. The
    interpreter does write a byte to a file descriptor at once; a thread that waits there ends the process if
    the loop has not called `acknowledge` within GRACE_S, its stacks in `log`.
    """

    def __init__(self, log: Path) -> None:
        self.requested = False
        self._log = log
        self._acknowledged = threading.Event()

    def acknowledge(self) -> None:
        """The loop has seen the request and is about to save: take the time it needs."""
        self._acknowledged.set()

    def __enter__(self) -> StopRequest:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old_handler = signal.signal(signal.SIGTERM, self._handle)
        threading.Thread(target=self._watch, daemon=True, name="stop-request").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._old_handler)
        signal.set_wakeup_fd(self._old_fd)
        self._acknowledged.set()
        self._writer.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def _watch(self) -> None:
        while signals := self._reader.recv(64):
            if signal.SIGTERM in signals:
                break
        else:
            return
        if not self._acknowledged.wait(GRACE_S):
            dump_stacks(
                self._log, f"SIGTERM, but the loop did not come round within {GRACE_S:g} s (a lost rank?)"
            )
            os._exit(1)
