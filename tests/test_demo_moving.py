"""A camera that comes and goes, a video that is whole, cut or none at all, and a folder of images."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import pytest
from PIL import Image

from deploy.demo.capture import Capture
from deploy.demo.folder import PERIOD_S, from_folder
from deploy.demo.moving import FIRST_PAUSE_S, LAST_PAUSE_S, Pictures, from_camera, from_video
from deploy.demo.show import State
from deploy.demo.sources import Source
from tests.demo_shows import until
from tests.fake_camera import all_end, fake_camera, frame_number, starts


class Halt(Event):
    """Remembers the pauses instead of taking them, and is set after some of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.pauses: list[float] = []
        self._most = most

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        if len(self.pauses) >= self._most:
            self.set()
        return self.is_set()


def watch(pictures: Pictures, halt: Halt) -> tuple[list[int], list[tuple[State, str | None]]]:
    """(the frames' numbers, what was told)."""
    told: list[tuple[State, str | None]] = []
    seen = [frame_number(image) for image in pictures(halt, lambda *what: told.append(what))]
    return seen, told


def test_a_camera_that_is_away_is_looked_for_less_and_less_often(tmp_path: Path) -> None:
    halt = Halt(6)
    seen, told = watch(from_camera("camera:0", lambda: fake_camera(tmp_path / "log", 0, "die")), halt)
    assert seen == []
    assert halt.pauses == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert (halt.pauses[0], halt.pauses[-1]) == (FIRST_PAUSE_S, LAST_PAUSE_S)
    assert told[0] == ("waiting", "camera:0: no picture yet")
    assert set(told[1:]) == {("waiting", "camera:0: the cable is loose; looking for it again")}
    assert len(starts(tmp_path / "log")) == 6


def test_a_camera_that_was_back_is_looked_for_often_again(tmp_path: Path) -> None:
    logs = [tmp_path / "away", tmp_path / "away", tmp_path / "there", tmp_path / "away", tmp_path / "away"]
    halt = Halt(5)
    commands = iter([fake_camera(log, 2 if log.name == "there" else 0, "stop") for log in logs])
    seen, told = watch(from_camera("camera:0", lambda: next(commands)), halt)
    assert seen == [1, 2]
    assert halt.pauses == [0.5, 1.0, 0.5, 1.0, 2.0]
    assert told[3] == ("playing", None)
    assert told[4] == ("waiting", "camera:0: the stream has ended; looking for it again")


def test_a_camera_that_hangs_is_started_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    seen, told = watch(from_camera("camera:0", lambda: fake_camera(log, 1, "hang"), silence_s=0.5), Halt(2))
    assert seen == [1, 1]
    assert told[2] == ("waiting", "camera:0: no frame for 0.5 s; looking for it again")
    assert all_end(log)


@pytest.mark.parametrize(
    ("count", "end", "loop", "seen", "told"),
    [
        (3, "stop", False, [1, 2, 3], [("playing", None), ("ended", "x.mp4: played to its end")]),
        (2, "stop", True, [1, 2, 1, 2], [("playing", None), ("playing", None)]),
        (0, "stop", True, [], [("failed", "x.mp4: cannot be played (it holds no frame)")]),
        (0, "die", True, [], [("failed", "x.mp4: cannot be played (the cable is loose)")]),
        (
            1, "cut", True, [1, 1],
            [
                ("playing", None),
                ("playing", "x.mp4: cut or damaged, played to frame 1 (ended in the middle of frame 2)"),
            ],
        ),
        (
            1, "die", False, [1],
            [("playing", None), ("ended", "x.mp4: cut or damaged, played to frame 1 (the cable is loose)")],
        ),
    ],
)  # fmt: skip
def test_a_video_plays_as_far_as_it_goes(
    tmp_path: Path, count: int, end: str, loop: bool, seen: list[int], told: list[tuple[State, str | None]]
) -> None:
    command = fake_camera(tmp_path / "log", count, end)
    assert watch(from_video("x.mp4", command, loop), Halt(2)) == (seen, told)
    assert all_end(tmp_path / "log")


def test_a_video_of_one_frame_does_not_start_programs_without_end(tmp_path: Path) -> None:
    halt = Halt(2)
    watch(from_video("x.mp4", fake_camera(tmp_path / "log", 1, "stop"), loop=True), halt)
    assert len(halt.pauses) == 2
    assert all(0 <= pause <= 1 for pause in halt.pauses)


def photo(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), (grey, grey, grey)).save(path)


def test_a_folder_is_shown_in_order_without_what_is_hidden(tmp_path: Path) -> None:
    for name, grey in (("b/2.png", 2), ("a/1.png", 1), ("b/.3.png", 3), (".c/4.png", 4)):
        photo(tmp_path / name, grey)
    (tmp_path / "a/1a.png").write_bytes(b"no image")
    (tmp_path / "a/notes.txt").write_text("no image")
    halt, told = Halt(5), []
    images = list(from_folder(tmp_path, loop=True)(halt, lambda *what: told.append(what)))
    assert [int(image.max()) for image in images] == [1, 2, 1]
    assert set(halt.pauses) == {PERIOD_S}
    assert [state for state, _ in told] == ["playing"] * 5
    assert [bool(message and "1a.png" in message) for _, message in told] == [False, True, False, False, True]


def test_a_folder_without_one_good_image_has_failed(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    told: list[tuple[State, str | None]] = []
    assert list(from_folder(tmp_path, loop=True)(Halt(9), lambda *what: told.append(what))) == []
    assert told[-1] == ("failed", f"{tmp_path}: none of its 1 images can be read")
    photo(tmp_path / "2.png", 9)
    assert len(list(from_folder(tmp_path, loop=False)(Halt(9), lambda *what: told.append(what)))) == 1
    assert told[-1] == ("ended", f"{tmp_path}: each of its 2 images was shown")


def test_a_source_that_gives_no_pictures_but_text_has_failed(tmp_path: Path) -> None:
    source = Source("camera:0", from_camera("camera:0", lambda: fake_camera(tmp_path / "log", 1, "babble")))
    taken: list[int] = []
    with Capture(source, lambda image: taken.append(frame_number(image))) as capture:
        capture.wait_for_first(30)
        until(lambda: capture.state()[0] == "failed")
    assert taken == [1]
    assert (capture.state()[1] or "").startswith("camera:0: no picture but b'Setting pipeline")
