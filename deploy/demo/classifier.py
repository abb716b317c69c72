"""The thread that classifies: the newest picture, each lane in turn, and whoever waits for an answer."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Condition, Lock, Thread
from types import TracebackType

import numpy as np

from deploy.bundle import Bundle
from deploy.demo.frames import MAX_PIXELS
from deploy.demo.lanes import check_lane
from deploy.demo.show import Lane, Shown
from deploy.demo.side import Side, open_side
from deploy.errors import LabError
from deploy.preprocess import Image, preprocess

_RATE_OVER_S = 5.0
_ENDED = "the demo has ended; start it again"


class Classifier:
    """Use it in a `with`. The sides are its own: it closes them. Every method may be called from any thread.

    Pictures of the source that come while it is busy replace each other; those that somebody waits for are
    all answered, one before each of the source's.
    """

    def __init__(self, bundle: Bundle, sides: Sequence[Side], threads: int | None) -> None:
        assert bundle.input is not None
        self._bundle, self._spec, self._threads = bundle, bundle.input, threads
        self._sides = tuple(sides)
        self._wake, self._switching = Condition(), Lock()
        # What the thread is to do, and what it has done: touched with `_wake` held.
        self._ended = False
        self._newest: Image | None = None
        self._asked: deque[tuple[Image, Future[Shown]]] = deque()
        self._switched: deque[tuple[int, Side, Future[None]]] = deque()
        self._latest: Shown | None = None
        self._times: deque[float] = deque()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._num_listeners = 0
        self._thread = Thread(target=self._run, name="classifier", daemon=True)

    def __enter__(self) -> Classifier:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()

    def take(self, image: Image) -> None:
        """The source's newest picture."""
        with self._wake:
            self._newest = image
            self._wake.notify()

    def latest(self) -> Shown | None:
        with self._wake:
            return self._latest

    def sides(self) -> tuple[Side, ...]:
        with self._wake:
            return self._sides

    def fps(self) -> float | None:
        """Of the source's pictures in the last 5 s, by the monotonic clock; None for fewer than two."""
        now = time.monotonic()
        with self._wake:
            recent = [at for at in self._times if at >= now - _RATE_OVER_S]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else None

    def on_new(self, call: Callable[[], None]) -> Callable[[], None]:
        with self._wake:
            self._num_listeners += 1
            number = self._num_listeners
            self._listeners[number] = call

        def end() -> None:
            with self._wake:
                self._listeners.pop(number, None)

        return end

    def classify(self, image: Image) -> Shown:
        """Raises LabError for what is no picture, or a larger one than MAX_PIXELS, and at the demo's end."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise LabError(f"the picture is {image.dtype} {image.shape}, must be uint8 height x width x 3")
        if image.shape[0] * image.shape[1] > MAX_PIXELS:
            raise LabError(f"the picture has {image.shape[1]} x {image.shape[0]} px; at most {MAX_PIXELS} px")
        answer: Future[Shown] = Future()
        with self._wake:
            if self._ended:
                raise LabError(_ENDED)
            self._asked.append((image, answer))
            self._wake.notify()
        return answer.result()

    def switch(self, side: int, lane: Lane) -> None:
        """Opens the lane in the caller's thread, so that the others go on meanwhile (an engine may have to be
        built); returns once it runs. Raises LabError."""
        with self._switching:
            now = self.sides()
            if not 0 <= side < len(now):
                raise LabError(f"side {side}: there are {len(now)}, counted from 0")
            check_lane(self._bundle, lane)
            if now[side].lane == lane and now[side].is_open and now[side].error is None:
                return
            opened = open_side(self._bundle, lane, self._threads)
            done: Future[None] = Future()
            with self._wake:
                if self._ended:
                    opened.close()
                    raise LabError(_ENDED)
                self._switched.append((side, opened, done))
                self._wake.notify()
            done.result()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            with self._wake:
                self._ended = True
                asked, switched = list(self._asked), list(self._switched)
            for _, answer in asked:
                answer.set_exception(LabError(_ENDED))
            for _, opened, done in switched:
                opened.close()
                done.set_exception(LabError(_ENDED))
            for side in self._sides:
                side.close()

    def _turn(self) -> bool:
        """Whatever there is to do, once; False at the end."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._ended or self._newest is not None or self._asked or self._switched
            )
            if self._ended:
                return False
            switched = self._switched.popleft() if self._switched else None
            asked = self._asked.popleft() if self._asked else None
            newest, self._newest = self._newest, None
        if switched is not None:
            self._exchange(*switched)
        if asked is not None:
            image, answer = asked
            try:
                answer.set_result(self._look(image, 0))
            except Exception as error:  # the caller's to see; the thread goes on
                answer.set_exception(error)
        if newest is not None:
            try:
                self._publish(newest)
            except Exception:  # a defect of ours: the next picture may do
                traceback.print_exc()
        return True

    def _exchange(self, index: int, opened: Side, done: Future[None]) -> None:
        old = self._sides[index]
        with self._wake:
            self._sides = (*self._sides[:index], opened, *self._sides[index + 1 :])
        try:
            old.close()
        finally:
            done.set_result(None)

    def _look(self, image: Image, number: int) -> Shown:
        began = time.perf_counter()
        tensor = preprocess(image, self._spec)
        preprocess_ms = 1e3 * (time.perf_counter() - began)
        answers = tuple(side.answer(tensor) for side in self._sides)
        return Shown(number, image, answers, preprocess_ms)

    def _publish(self, image: Image) -> None:
        shown = self._look(image, self._latest.number + 1 if self._latest else 1)
        now = time.monotonic()
        with self._wake:
            self._latest = shown
            self._times.append(now)
            while self._times[0] < now - _RATE_OVER_S:
                self._times.popleft()
            listeners = list(self._listeners.items())
        for number, call in listeners:
            try:
                call()
            except Exception:  # a defect of the listener's: the others are still to hear
                traceback.print_exc()
                with self._wake:
                    self._listeners.pop(number, None)
