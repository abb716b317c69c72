"""A Show without a network, for tests of the page: a moving picture, answers that follow it, failures.

`python -m tests.fake_show PORT [TOKEN]` serves it in a process of its own and prints the port.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from deploy.demo.server import serve
from deploy.demo.show import Answer, Guess, Lane, Shown, Status
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import Image, preprocess

NAMES = ("daisy", "rose", "tulip", "sunflower", "dandelion", "violet")
CHOICES = tuple(Lane(v, b) for v in ("fp32", "int8") for b in ("onnxruntime", "openvino"))
SPEC = InputSpec(size=64, resize=72, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=NAMES)


@dataclass
class FakeShow:
    lanes: list[Lane] = field(default_factory=lambda: [CHOICES[0], CHOICES[2]])
    shown: Shown | None = None
    changes: dict[str, object] = field(default_factory=dict)
    """Fields of the status that are to be other ones."""
    calls: list[Callable[[], None]] = field(default_factory=list)
    hold: threading.Event | None = None
    """Classifying waits for it."""

    def latest(self) -> Shown | None:
        return self.shown

    def status(self) -> Status:
        usual = Status(
            source="fake", state="playing", message=None, fps=25.0,
            lane_fps=(238.0, 526.0)[: len(self.lanes)],
            watts=None, watts_of=None, watts_missing="nothing measures power here",
            lanes=tuple(self.lanes), choices=CHOICES,
        )  # fmt: skip
        return replace(usual, **self.changes)  # type: ignore[arg-type]

    def on_new(self, call: Callable[[], None]) -> Callable[[], None]:
        self.calls.append(call)
        return lambda: self.calls.remove(call)

    def switch(self, side: int, lane: Lane) -> None:
        if lane not in CHOICES:
            raise LabError(f"variant {lane.variant!r} with {lane.backend!r} cannot run here; choose another")
        self.lanes[side] = lane

    def classify(self, image: Image) -> Shown:
        if self.hold is not None:
            self.hold.wait(30)
        return self._answered(0, image)

    def play(self, image: Image) -> None:
        """The next picture of the source."""
        number = 1 if self.shown is None else self.shown.number + 1
        self.shown = self._answered(number, image)
        for call in list(self.calls):
            call()

    def _answered(self, number: int, image: Image) -> Shown:
        first = int(np.abs(preprocess(image, SPEC)).mean() * 10) % len(NAMES)
        answers = []
        for side, lane in enumerate(self.lanes):
            shares = [(0.7, 0.65)[side], 0.15, 0.08, 0.04, 0.02]
            top = tuple(Guess(NAMES[(first + i) % len(NAMES)], p) for i, p in enumerate(shares))
            answers.append(Answer(lane, lane.variant, top, 4.2 if lane.variant == "fp32" else 1.9))
        return Shown(number, image, tuple(answers), 0.8)


def moving(number: int, height: int = 480, width: int = 640) -> Image:
    """A bright square that wanders over a slope of grey."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (np.arange(width) * 128 // width).astype(np.uint8)[None, :, None]
    x, y = number * 7 % (width - 80), number * 5 % (height - 80)
    image[y : y + 80, x : x + 80] = (240, 200, 60)
    return image


@contextmanager
def playing(show: FakeShow, fps: float = 25.0) -> Iterator[None]:
    """A thread that gives the show moving pictures."""
    end = threading.Event()

    def run() -> None:
        number = 0
        while not end.wait(1 / fps):
            number += 1
            show.play(moving(number))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def forbid(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: a server that writes a file or starts a program is at its end, with exit code 99."""
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    opens = event == "open" and isinstance(arguments[0], str) and int(str(arguments[2])) & writes
    if opens or event in (
        "subprocess.Popen",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.rename",
        "os.mkdir",
    ):
        print(event, *arguments, file=sys.stderr, flush=True)
        os._exit(99)


if __name__ == "__main__":
    fake = FakeShow()
    given = sys.argv[2] if len(sys.argv) > 2 else None
    with playing(fake), serve(fake, title="flowers", port=int(sys.argv[1]), token=given) as serving:
        print(serving.port, flush=True)
        sys.addaudithook(forbid)
        sys.stdin.read()  # ends when whoever started it closes the pipe
