"""Running shows for tests: the tiny bundle, and waits for what a show will say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import numpy as np
import pytest

from deploy.demo import pipeline
from deploy.demo.show import Lane, Show, Status
from deploy.demo.sources import Source

LONG_S = 20.0
"""Of a wait that ends long before, or the test has failed."""
RED = np.full((12, 10, 3), (200, 30, 40), np.uint8)
FP32, INT8 = Lane("fp32", "onnxruntime"), Lane("int8", "onnxruntime")


@contextmanager
def news(show: Show) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """Yields a function that waits until something holds, looking again with each new picture."""
    new = threading.Condition()

    def tell() -> None:
        with new:
            new.notify_all()

    end = show.on_new(tell)

    def until(holds: Callable[[], bool]) -> None:
        with new:
            assert new.wait_for(holds, LONG_S)

    yield until
    end()


def until(holds: Callable[[], bool]) -> None:
    """For what no picture tells of."""
    pause, deadline = Event(), time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < deadline
        pause.wait(0.01)


def shows(show: Show, wanted: Callable[[Status], bool]) -> None:
    until(lambda: wanted(show.status()))


def with_source(monkeypatch: pytest.MonkeyPatch, pictures: Any) -> None:
    monkeypatch.setattr(pipeline, "find_source", lambda text, width, loop: Source(text, pictures))


def threads_left() -> list[str]:
    """Names of the demo's threads that still run."""
    ours = {"capture", "classifier", "watts"}
    return [thread.name for thread in threading.enumerate() if thread.name in ours]
