"""The thread that captures. It keeps the newest picture only, so that nobody ever sees an old one."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from threading import Event, Lock, Thread
from types import TracebackType

from deploy.demo.show import State
from deploy.demo.sources import Source
from deploy.errors import LabError
from deploy.preprocess import Image


class Capture:
    """Runs a source; use it in a `with`. `take` is given each picture and must return at once."""

    def __init__(self, source: Source, take: Callable[[Image], None]) -> None:
        self._source, self._take = source, take
        self._lock, self._halt, self._settled = Lock(), Event(), Event()
        self._state: tuple[State, str | None] = ("waiting", None)
        self._thread = Thread(target=self._run, name="capture", daemon=True)

    def __enter__(self) -> Capture:
        if self._source.pictures is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._halt.set()
        if self._source.pictures is not None:
            self._thread.join()

    def state(self) -> tuple[State, str | None]:
        with self._lock:
            return self._state

    def wait_for_first(self, seconds: float) -> None:
        """Until there was a picture or the source has failed, at most so long."""
        self._settled.wait(seconds)

    def _tell(self, state: State, message: str | None) -> None:
        with self._lock:
            self._state = (state, message)
        if state in ("ended", "failed"):
            self._settled.set()

    def _run(self) -> None:
        assert self._source.pictures is not None
        pictures = self._source.pictures(self._halt, self._tell)
        try:
            for image in pictures:
                if self._halt.is_set():
                    break
                self._take(image)
                self._settled.set()
        except LabError as error:
            self._tell("failed", f"{self._source.name}: {error}")
        except Exception as error:  # a defect of ours: the demo still shows what it has, and says so
            traceback.print_exc()
            self._tell("failed", f"{self._source.name}: {type(error).__name__}: {error}")
        finally:
            pictures.close()  # ends the child of a source that has one
