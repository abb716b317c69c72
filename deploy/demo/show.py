"""What the demo shows, and what a page or a terminal may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from deploy.preprocess import Image

TOP = 5
State = Literal["playing", "waiting", "ended", "failed"]


@dataclass(frozen=True)
class Lane:
    """One of the things that run side by side."""

    variant: str
    backend: str


@dataclass(frozen=True)
class Guess:
    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a lane says of one picture. top: at most TOP, likeliest first. latency_ms: of `infer` alone.

    error: one line on why the lane has no answer; then `top` is empty and `latency_ms` 0.
    """

    lane: Lane
    precision: str
    top: tuple[Guess, ...]
    latency_ms: float
    error: str | None = None


@dataclass(frozen=True)
class Shown:
    """A picture and what each lane says of it. number: grows by one with each picture, from 1.

    image: uint8 H x W x 3, RGB, which nobody changes. preprocess_ms: from it to the network's input, once
    for all lanes.
    """

    number: int
    image: Image
    answers: tuple[Answer, ...]
    preprocess_ms: float


@dataclass(frozen=True)
class Status:
    """How it goes. message: one line for the viewer where something is not as it should be.

    fps: pictures a second of late, None before there are some. lane_fps: what each lane could do alone, of
    its latency. watts: of the rail `watts_of`; both None, with the reason in `watts_missing`, where nothing
    measures them. choices: every lane that can be chosen here.
    """

    source: str
    state: State
    message: str | None
    fps: float | None
    lane_fps: tuple[float | None, ...]
    watts: float | None
    watts_of: str | None
    watts_missing: str | None
    lanes: tuple[Lane, ...]
    choices: tuple[Lane, ...]


class Show(Protocol):
    """A running demo. Every method may be called from any thread."""

    def latest(self) -> Shown | None: ...
    def status(self) -> Status: ...
    def on_new(self, call: Callable[[], None]) -> Callable[[], None]:
        """Have `call` called, from the thread that classifies, after each new picture; it must return at
        once. Returns what ends that."""
        ...

    def switch(self, side: int, lane: Lane) -> None:
        """Run another lane on that side, from the next picture on. Raises LabError; all goes on as it was."""
        ...

    def classify(self, image: Image) -> Shown:
        """What the lanes say of a picture that is not of the source; `number` is 0. Waits its turn."""
        ...
