"""Watts as they are drawn: a thread that reads the machine's meter while the demo runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType

from deploy.errors import LabError
from deploy.power import PowerMeter

_MEAN_OVER_S = 1.0  # single readings of a busy rail jump
_FASTEST_S, _AGAIN_S = 0.1, 5.0


@dataclass(frozen=True)
class Drawn:
    """watts: of the rail, the mean of the last second; else None, with the reason in `missing`."""

    watts: float | None
    rail: str | None
    missing: str | None


class Watts:
    """Use it in a `with`. find: gives the meter, or raises LabError with the reason why there is none.

    It is read at its own rate, but 10 times a second at most.
    """

    def __init__(self, find: Callable[[], PowerMeter]) -> None:
        self._find, self._lock, self._halt = find, Lock(), Event()
        self._drawn = Drawn(None, None, "not read yet")
        self._thread = Thread(target=self._run, name="watts", daemon=True)

    def __enter__(self) -> Watts:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt.set()
        self._thread.join()

    def drawn(self) -> Drawn:
        with self._lock:
            return self._drawn

    def _set(self, drawn: Drawn) -> None:
        with self._lock:
            self._drawn = drawn

    def _run(self) -> None:
        try:
            with self._find() as meter:
                self._watch(meter)
        except LabError as error:
            self._set(Drawn(None, None, str(error)))

    def _watch(self, meter: PowerMeter) -> None:
        recent: deque[tuple[float, float]] = deque()
        pause_s = max(_FASTEST_S, 1 / meter.hertz)
        while not self._halt.wait(pause_s):
            try:
                watts = meter.read().watts[meter.rail]
            except LabError as error:  # a sensor may be away for a while, as a sleeping GPU's
                recent.clear()
                self._set(Drawn(None, None, str(error)))
                pause_s = _AGAIN_S
                continue
            pause_s = max(_FASTEST_S, 1 / meter.hertz)
            now = time.monotonic()
            recent.append((now, watts))
            while recent[0][0] < now - _MEAN_OVER_S:
                recent.popleft()
            self._set(Drawn(sum(w for _, w in recent) / len(recent), meter.rail, None))
