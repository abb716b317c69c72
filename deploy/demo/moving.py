"""A camera or a video as pictures: what ends is begun again, and the viewer is told why it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from threading import Event

from deploy.demo.commands import Command
from deploy.demo.frames import SILENCE_S, Frames
from deploy.demo.show import State
from deploy.preprocess import Image

Tell = Callable[[State, str | None], None]
Pictures = Callable[[Event, Tell], Generator[Image, None, None]]
"""Pictures as they come, until the event is set; tells how it goes."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 5.0
_SHORTEST_S = 1.0  # between two starts of a video: one of a single frame would start ten programs a second


def from_camera(name: str, command: Callable[[], Command], silence_s: float = SILENCE_S) -> Pictures:
    """Of a camera or a stream: it may vanish, and is looked for until it is back.

    The pauses double from FIRST_PAUSE_S to LAST_PAUSE_S, and begin anew with its first frame. command: made
    anew for each try, because what it is may have changed with the plug.
    """

    def pictures(halt: Event, tell: Tell) -> Generator[Image, None, None]:
        pause_s = FIRST_PAUSE_S
        tell("waiting", f"{name}: no picture yet")
        while not halt.is_set():
            with Frames(command(), halt, silence_s) as frames:
                for image in frames:
                    if frames.count == 1:
                        pause_s = FIRST_PAUSE_S
                        tell("playing", None)
                    yield image
            tell("waiting", f"{name}: {frames.reason or 'the stream has ended'}; looking for it again")
            halt.wait(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    return pictures


def from_video(name: str, command: Command, loop: bool, silence_s: float = SILENCE_S) -> Pictures:
    """Of a file, from the start again and again where `loop`. One that gives no frame has failed for good;
    one that is cut or damaged is played as far as it goes, and the viewer is told."""

    def pictures(halt: Event, tell: Tell) -> Generator[Image, None, None]:
        note = None
        while not halt.is_set():
            began = time.monotonic()
            with Frames(command, halt, silence_s) as frames:
                for image in frames:
                    if frames.count == 1:
                        tell("playing", note)
                    yield image
            if halt.is_set():
                return
            if not frames.count:
                tell("failed", f"{name}: cannot be played ({frames.reason or 'it holds no frame'})")
                return
            note = (
                frames.reason and f"{name}: cut or damaged, played to frame {frames.count} ({frames.reason})"
            )
            if not loop:
                tell("ended", note or f"{name}: played to its end")
                return
            halt.wait(max(0.0, _SHORTEST_S - (time.monotonic() - began)))

    return pictures
