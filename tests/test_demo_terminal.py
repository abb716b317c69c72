"""The demo in a terminal: a real pseudo-terminal, a pipe, and Ctrl-C in both."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from deploy.demo.show import Answer, Guess, Lane, Shown, Status
from deploy.demo.terminal import line, watch
from deploy.demo.terminal_view import shrink, view
from tests.processes import ROOT, environment
from tests.test_deploy_bundle import tiny_bundle

FP32, INT8 = Lane("fp32", "onnxruntime"), Lane("int8", "tensorrt")
TOP = (Guess("cat", 0.75), Guess("dog", 0.25))
SHOWN = Shown(
    7,
    np.full((48, 64, 3), (200, 30, 40), np.uint8),
    (Answer(FP32, "fp32", TOP, 4.25), Answer(INT8, "int8", (Guess("dog", 0.75), Guess("cat", 0.25)), 1.5)),
    0.9,
)
STATUS = Status(
    source="camera:0",
    state="playing",
    message=None,
    fps=29.97,
    lane_fps=(235.0, None),
    watts=7.26,
    watts_of="VDD_IN",
    watts_missing=None,
    lanes=(FP32, INT8),
    choices=(FP32, INT8),
)


Colours = Literal["truecolor"]


def drawn(
    status: Status, shown: Shown, width: int, height: int, colours: Colours | None = "truecolor"
) -> str:
    from rich.console import Console

    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    console = Console(
        file=stream, width=width, height=height, force_terminal=colours is not None, color_system=colours,
    )  # fmt: skip
    console.print(view(status, shown, console))
    stream.seek(0)
    return stream.read()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_line_says_it_all() -> None:
    assert line(STATUS, SHOWN) == (
        "#7 | 30.0 fps | fp32 (onnxruntime): cat 75% 4.25 ms | "
        "int8 (tensorrt): dog 75% 1.50 ms | 7.3 W (VDD_IN)"
    )
    waiting = replace(STATUS, state="waiting", message="no cable", fps=None, watts=None, watts_of=None)
    assert line(waiting, None) == "camera:0: waiting | no cable"
    failed = replace(SHOWN, answers=(replace(SHOWN.answers[0], top=(), error="broken"),))
    assert "fp32 (onnxruntime): failed" in line(STATUS, failed)


def test_the_lanes_stand_side_by_side_with_bars() -> None:
    rows = plain(drawn(STATUS, SHOWN, 100, 40)).splitlines()
    assert rows[0].rstrip() == "camera:0: playing, 30.0 fps, 7.3 W (VDD_IN)"
    (title,) = [row for row in rows if "fp32 (onnxruntime)" in row]
    assert "int8 (tensorrt)" in title
    (figures,) = [row for row in rows if "4.25 ms, 235 fps alone" in row]
    assert "int8, 1.50 ms" in figures
    first, second = [re.sub("█+", lambda bar: f"[{len(bar[0])}]", row).split() for row in rows[-2:]]
    assert first == ["cat", "[17]", "75.0%", "dog", "[17]", "75.0%"]
    assert second == ["dog", "[6]", "25.0%", "cat", "[6]", "25.0%"]


@pytest.mark.parametrize(("width", "height"), [(20, 5), (40, 12), (80, 24), (200, 60)])
def test_it_fits_any_terminal(width: int, height: int) -> None:
    rows = plain(drawn(replace(STATUS, message="x" * 300), SHOWN, width, height)).splitlines()
    assert max(map(len, rows)) <= width
    picture = [row for row in rows if "▀" in row]
    assert len(picture) <= max(0, height - 12)
    assert (height < 15) == (not picture)


def test_without_colours_there_is_no_picture() -> None:
    assert "▀" not in drawn(STATUS, SHOWN, 80, 40, colours=None)


def test_nothing_of_a_name_or_a_message_steers_the_terminal() -> None:
    evil = "\x1b[2Jcat\r\n\x07"
    shown = replace(SHOWN, answers=(replace(SHOWN.answers[0], top=(Guess(evil, 1.0),)),))
    status = replace(STATUS, message=evil, source=evil)
    assert line(status, shown).isprintable()
    text = drawn(status, shown, 80, 40)
    assert "\x1b[2J" not in text
    assert "\x07" not in text


def test_a_picture_is_made_smaller_and_keeps_its_shape() -> None:
    image = np.arange(480 * 640 * 3, dtype=np.uint32).astype(np.uint8).reshape(480, 640, 3)
    assert shrink(image, 48, 200).shape == (48, 64, 3)
    assert shrink(image, 400, 64).shape == (48, 64, 3)
    assert shrink(image[:1, :1], 8, 8).shape == (8, 8, 3)
    assert shrink(image[:1], 8, 8).shape == (2, 8, 3)


class Script:
    """A show that ends by itself after some looks at it."""

    def __init__(self, *statuses: Status) -> None:
        self._statuses = list(statuses)

    def latest(self) -> Shown | None:
        return SHOWN

    def status(self) -> Status:
        return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]


@pytest.mark.parametrize(("state", "code"), [("ended", 0), ("failed", 1)])
def test_it_ends_with_the_source(state: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.terminal.LINE_S", 0.0)
    stream = io.StringIO()
    last = replace(STATUS, state=state, message="that was all, ünd more")  # type: ignore[arg-type]
    assert watch(Script(STATUS, STATUS, last), stream) == code  # type: ignore[arg-type]
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2  # the same is said once
    assert lines[1].endswith(f"{state} | that was all, ?nd more")


PROGRAM = """
import sys
from pathlib import Path
from deploy.bundle import open_bundle
from deploy.demo.pipeline import open_show
from deploy.demo.terminal import watch
if sys.argv[3] == "bare":
    sys.modules["rich"] = None
with open_show(open_bundle(Path(sys.argv[1])), sys.argv[2], threads=1) as show:
    code = watch(show)
sys.exit(code)
"""


def start(folder: Path, out: int, kind: str, **more: str) -> subprocess.Popen[bytes]:
    bundle = tiny_bundle(folder)
    arguments = [sys.executable, "-c", PROGRAM, str(bundle.root), str(folder / "photos"), kind]
    extra = environment({"TERM": "xterm-256color", "COLORTERM": "truecolor", **more})
    # A test runner's own, which would stand above what the terminal says of itself.
    env = {name: value for name, value in extra.items() if name not in ("COLUMNS", "LINES")}
    return subprocess.Popen(arguments, cwd=ROOT, env=env, stdin=out, stdout=out, stderr=subprocess.PIPE)


def read_until(descriptor: int, wanted: str, seconds: float = 60.0) -> str:
    text, deadline = "", time.monotonic() + seconds
    while not re.search(wanted, text):
        left = deadline - time.monotonic()
        assert left > 0, text
        if select.select([descriptor], [], [], left)[0]:
            text += os.read(descriptor, 1 << 16).decode(errors="replace")
    return text


@pytest.mark.parametrize("kind", ["rich", "bare"])
def test_ctrl_c_in_a_real_terminal_ends_it_well(tmp_path: Path, kind: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    child = start(tmp_path, theirs, kind)
    try:
        if kind == "rich":
            text = read_until(ours, "▀[^$]*int8 .onnxruntime.[^$]*%")
            assert "\x1b[?1049h" in text  # a screen of its own
            fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
            read_until(ours, r"\x1b\[H[^▀]*ms[^▀]*\x1b\[H")  # no room for the picture any more
        else:
            text = read_until(ours, r"#\d+ \|")
            assert "\x1b" not in text
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
        os.close(theirs)
        os.close(ours)
    assert (child.returncode, errors) == (0, b"")


def test_in_a_pipe_it_writes_lines_and_no_codes(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = start(tmp_path, writer, "rich", PYTHONIOENCODING="ascii")
    os.close(writer)
    try:
        text = read_until(reader, r"#2 \|.*\n")
        assert "\x1b" not in text
        assert "fp32 (onnxruntime): green" in text
        os.close(reader)  # as `head` does
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, errors) == (0, b"")
