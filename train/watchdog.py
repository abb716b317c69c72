"""A run that no longer moves is ended, with the stack of every thread in the rank's log."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

BACKSTOP_S = 15.0
"""The interpreter's own timer fires so much later: it needs no lock that a hanging thread may hold."""


class Watchdog:
    """Context in which `beat` must be called at least every `timeout_s` seconds.

    Otherwise the stacks go to `log`, one line to stderr, and the process ends with code 1. A launcher then
    ends the other ranks, which leave their stacks in the same way (`train.stop`) or by a watchdog of theirs.
    """

    def __init__(self, timeout_s: float, log: Path) -> None:
        self._timeout_s = timeout_s
        self._log = log
        self._ended = threading.Event()
        self._beaten = self._armed = time.monotonic()

    def beat(self) -> None:
        self._beaten = time.monotonic()
        # Arming starts a thread: too dear for every step, and a tenth of the limit is exact enough.
        if self._beaten - self._armed > self._timeout_s / 10:
            self._arm()

    def __enter__(self) -> Watchdog:
        self._file = self._log.open("a")
        self.beat()
        self._arm()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    def _arm(self) -> None:
        self._armed = self._beaten
        faulthandler.dump_traceback_later(self._timeout_s + BACKSTOP_S, exit=True, file=self._file)

    def _watch(self) -> None:
        while not self._ended.wait(max(0.05, self._beaten + self._timeout_s - time.monotonic())):
            if time.monotonic() - self._beaten >= self._timeout_s:
                dump_stacks(self._log, f"no step within strategy.timeout_s={self._timeout_s:g}")
                os._exit(1)


def dump_stacks(log: Path, reason: str) -> None:
    """Write the stack of every thread of this process behind the log, and say so on stderr."""
    with log.open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {reason}; the stacks of all threads:\n")
        file.flush()
        faulthandler.dump_traceback(file)
    rank = os.environ.get("RANK", os.environ.get("HOROVOD_RANK", "0"))
    print(
        f"error: rank {rank}: {reason}; its stacks are in {log}; "
        "the last checkpoint stands, go on with resume=true",
        file=sys.stderr,
        flush=True,
    )
