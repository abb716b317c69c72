"""Frames of a child process: whole or not at all, and no child is left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.demo.commands import Command, video
from deploy.demo.frames import MAX_PIXELS, Frames
from deploy.errors import LabError
from tests.fake_camera import all_end, fake_camera, frame_number, starts
from tests.films import cut_film, make_film


def play(command: Command, silence_s: float = 30.0) -> tuple[list[NDArray[Any]], str | None]:
    with Frames(command, Event(), silence_s) as frames:
        images = list(frames)
    return images, frames.reason


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("stop", None),
        ("die", "the cable is loose"),
        ("silent", "sh ended with exit code 3"),
        ("cut", "ended in the middle of frame 4"),
        ("cut header", "ended in the middle of frame 4"),
        ("hang", "no frame for 1 s"),
        ("deaf", "no frame for 1 s"),
        ("orphan", "no frame for 1 s"),
        ("chatter", "no frame for 1 s"),
    ],
)
def test_whole_frames_come_and_the_end_has_a_reason(tmp_path: Path, end: str, reason: str | None) -> None:
    log = tmp_path / "log"
    images, said = play(fake_camera(log, 3, end), silence_s=1.0)
    assert said == reason
    assert [frame_number(image) for image in images] == [1, 2, 3]
    assert {image.shape for image in images} == {(2, 2, 3)}
    assert not any(image.flags.writeable for image in images)
    assert all_end(log)


def test_what_a_child_says_never_holds_it_up(tmp_path: Path) -> None:
    images, said = play(fake_camera(tmp_path / "log", 3, "noisy"), silence_s=5.0)
    assert [frame_number(image) for image in images] == [1, 2, 3, 4]
    assert said == "words"


@pytest.mark.parametrize(("end", "words"), [("babble", "no picture but b'Setting"), ("huge", "999999999 x")])
def test_what_is_no_frame_is_refused(tmp_path: Path, end: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        play(fake_camera(tmp_path / "log", 0, end))
    assert all_end(tmp_path / "log")


def test_a_reader_that_leaves_in_the_middle_leaves_no_child_and_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []
    for number, end in enumerate(("hang", "orphan", "stop")):
        log = tmp_path / str(number)
        with Frames(fake_camera(log, 100_000, end), Event()) as frames:
            assert frame_number(next(iter(frames))) == 1
        assert starts(log)
        assert all_end(log)
    assert before == (os.listdir("/proc/self/fd") if before else [])


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    halt = Event()
    with Frames(fake_camera(tmp_path / "log", 1, "hang"), halt) as frames:
        images = iter(frames)
        next(images)
        halt.set()
        assert next(images, None) is None
    assert frames.reason is None


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(LabError, match="no-such-program: No such file"):
        play(Command(("no-such-program",), "ppm"))


@pytest.mark.parametrize("cut", [1, 30, 70])
def test_the_parts_of_a_multipart_stream_are_frames(tmp_path: Path, cut: int) -> None:
    body = bytes(range(24))
    part = b"--frame\r\nContent-Type: video/x-raw\r\nContent-Length: 24\r\n\r\n" + body
    (tmp_path / "stream").write_bytes(part + b"\r\n" + part + b"\r\n" + part[:-cut])
    command = Command(("sh", "-c", f"echo GST_ARGUS: Done; cat {tmp_path}/stream >&3"), "parts", width=4)
    images, reason = play(command)
    assert [image.tobytes() for image in images] == [body, body]
    assert images[0].shape == (2, 4, 3)
    assert reason == "ended in the middle of frame 3"
    with pytest.raises(LabError, match="24 bytes has no rows of 5 px"):
        play(Command(command.argv, "parts", width=5))


def test_a_part_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "stream").write_bytes(b"--frame\r\nContent-Length: 99999999999996\r\n\r\n")
    with pytest.raises(LabError, match=str(MAX_PIXELS)):
        play(Command(("sh", "-c", f"echo GST_ARGUS: Done; cat {tmp_path}/stream >&3"), "parts", width=4))


PROGRAMS = [
    pytest.param(
        name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")
    )
    for name in ("ffmpeg", "gst-launch-1.0")
]


def only(name: str) -> Any:
    return lambda program: program if program == name else None


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("film"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_real_video_plays_in_colour_and_upright(film: Path, program: str) -> None:
    images, reason = play(video(str(film), 120, jetson=False, which=only(program)))
    assert reason is None
    assert len(images) == 10
    above, below = images[-1][2, 2].astype(int), images[-1][-2, -2].astype(int)
    assert np.abs(above - (255, 0, 0)).max() < 30
    assert np.abs(below - (0, 0, 255)).max() < 30
    # ffmpeg enlarges nothing; GStreamer's rows have the width that was asked for
    assert {image.shape for image in images} == {(60, 90, 3) if program == "ffmpeg" else (80, 120, 3)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_large_video_is_made_small_and_keeps_its_shape(film: Path, program: str) -> None:
    images, _ = play(video(str(film), 60, jetson=False, which=only(program)))
    assert {image.shape for image in images} == {(40, 60, 3)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_video_that_ends_in_the_middle_of_a_frame_plays_so_far(
    film: Path, program: str, tmp_path: Path
) -> None:
    cut = cut_film(film, tmp_path / "cut.webm")
    images, _ = play(video(str(cut), 90, jetson=False, which=only(program)))
    assert 0 < len(images) < 10


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_no_video_gives_no_frame_and_a_line(program: str, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("these are no pictures\n" * 100)
    images, reason = play(video(str(tmp_path / "notes.mp4"), 90, jetson=False, which=only(program)))
    assert images == []
    assert reason is not None
    assert "\n" not in reason
    assert str(tmp_path) not in reason
