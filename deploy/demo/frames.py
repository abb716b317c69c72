"""Frames from a child process: read whole or not at all, and the child never outlives its reader."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from threading import Event
from types import TracebackType
from typing import IO

import numpy as np

from deploy.demo.commands import FRAMES, Command
from deploy.errors import LabError
from deploy.preprocess import Image

SILENCE_S = 10.0
"""A child that gives no frame for so long hangs. CSI cameras and RTSP servers take some seconds to start."""
MAX_PIXELS = 7680 * 4320
_POLL_MS = 100  # so long an end of the demo may go unseen
_GRACE_S = 2.0  # Argus keeps a camera that was not given back
_KEPT = 1 << 14  # of what the child says
_PIPE_BYTES = 1 << 20  # the most that Linux lets anybody have; 64 KiB is its habit


class Frames:
    """Iterates over the frames of a command, uint8 H x W x 3, RGB, read-only; use it in a `with`.

    The iteration ends when the child does, hangs, or `halt` is set, and `reason` then says in one line what
    went wrong: None for a child that came to the end of what it plays. Raises LabError for a program that is
    not there, for what is no frame, and for one of more than MAX_PIXELS.
    """

    def __init__(self, command: Command, halt: Event, silence_s: float = SILENCE_S) -> None:
        self.count = 0
        self.reason: str | None = None
        self._command, self._halt, self._silence_s = command, halt, silence_s

    def __enter__(self) -> Frames:
        argv = self._command.argv
        if self._command.layout == "parts":
            argv = ("sh", "-c", f'exec "$0" "$@" {FRAMES}>&1 1>&2', *argv)
        try:
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is for us, and what it starts ends with it
            )
        except OSError as error:
            raise LabError(f"{self._command.argv[0]}: {error.strerror}; install it") from error
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._pipe = _Pipe(self._child.stdout, self._child.stderr, self._halt)
        self._stream = io.BufferedReader(self._pipe, 1 << 16)
        return self

    def __iter__(self) -> Iterator[Image]:
        while True:
            self._pipe.deadline = time.monotonic() + self._silence_s
            try:
                image = self._read()
            except TimeoutError:
                self.reason = f"no frame for {self._silence_s:g} s"
                return
            if image is None:
                break
            self.count += 1
            yield image
        if not self._halt.is_set():
            self._account()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()  # a child that waits for room in it is woken
        self._end()
        self._child.wait()

    def _read(self) -> Image | None:
        """The next whole frame; None where there is none."""
        shape = self._ppm_shape() if self._command.layout == "ppm" else self._part_shape()
        if shape is None:
            return None
        height, width = shape
        if not 0 < height * width <= MAX_PIXELS:
            raise LabError(f"a frame of {width} x {height} px; from 1 to {MAX_PIXELS} px in all are taken")
        image = np.empty((height, width, 3), np.uint8)
        got = self._stream.readinto(image.data.cast("B"))
        if got < image.nbytes:
            self._none(b"its header")
            return None
        image.flags.writeable = False
        return image

    def _none(self, begun: bytes) -> None:
        """For a stream that has ended, with what it had begun of another frame."""
        if begun.strip():
            self.reason = f"ended in the middle of frame {self.count + 1}"

    def _ppm_shape(self) -> tuple[int, int] | None:
        """From the header of a binary PPM file with lines as ffmpeg writes them (netpbm's ppm(5))."""
        lines = [self._stream.readline(64) for _ in range(3)]
        if not lines[2]:
            self._none(lines[0])
            return None
        sides = lines[1].split()
        if (
            lines[0] != b"P6\n"
            or lines[2] != b"255\n"
            or len(sides) != 2
            or not all(s.isdigit() for s in sides)
        ):
            raise LabError(f"no picture but {b''.join(lines)[:40]!r} where a frame should begin")
        return int(sides[1]), int(sides[0])

    def _part_shape(self) -> tuple[int, int] | None:
        """From a part's headers (RFC 2046)."""
        assert self._command.width is not None
        length, begun = None, b""
        while line := self._stream.readline(1024):
            begun += line
            name, _, value = line.decode("latin-1").partition(":")
            if name.lower() == "content-length" and value.strip().isdigit():
                length = int(value)
            if line == b"\r\n" and length is not None:
                height, rest = divmod(length, 3 * self._command.width)
                if rest:
                    raise LabError(f"a frame of {length} bytes has no rows of {self._command.width} px")
                return height, self._command.width
        self._none(begun)
        return None

    def _account(self) -> None:
        """`reason`, of a child whose stdout has ended."""
        ended = self._wait(_GRACE_S)
        self._pipe.hear_out()
        said = self._command.reason(self._pipe.said.decode(errors="replace"))
        if said is None and ended:
            said = f"{self._command.argv[0]} ended with {_words(ended)}"
        self.reason = "; ".join(part for part in (self.reason, said) if part) or None

    def _end(self) -> None:
        """SIGINT is what both programs end by in good order. All of the group, for a script has children."""
        for number, patience_s in ((signal.SIGINT, _GRACE_S), (signal.SIGKILL, 0.0)):
            try:
                os.killpg(self._child.pid, number)
            except (ProcessLookupError, PermissionError):  # the latter on macOS, of a group of zombies
                return
            self._wait(patience_s)

    def _wait(self, seconds: float) -> int | None:
        """Until the child ends; its code. It stays a zombie, so that its group's number stays its own."""
        until = time.monotonic() + seconds
        while True:
            ended = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            if time.monotonic() >= until:
                return None
            time.sleep(0.01)


class _Pipe(io.RawIOBase):
    """The child's stdout. What it says on stderr meanwhile is taken in too, so that it never has to wait."""

    def __init__(self, stdout: IO[bytes], stderr: IO[bytes], halt: Event) -> None:
        self.said = b""
        self.deadline = 0.0
        self._out, self._err, self._halt = stdout, stderr, halt
        self._poll = select.poll()
        for stream in (stdout, stderr):
            self._poll.register(stream, select.POLLIN)
        _widen(stdout.fileno())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants any buffer
        while not self._halt.is_set():
            ready = [descriptor for descriptor, _ in self._poll.poll(_POLL_MS)]
            if self._err.fileno() in ready and not self._hear():
                self._poll.unregister(self._err)
            if self._out.fileno() in ready:
                return os.readv(self._out.fileno(), [buffer])
            if time.monotonic() > self.deadline:
                raise TimeoutError
        return 0

    def hear_out(self) -> None:
        """What is still in stderr, without waiting for more: a grandchild may hold it open."""
        os.set_blocking(self._err.fileno(), False)
        try:
            while self._hear():
                pass
        except BlockingIOError:
            pass

    def close(self) -> None:
        if not self.closed:
            self._out.close()
            self._err.close()
        super().close()

    def _hear(self) -> bool:
        piece = os.read(self._err.fileno(), 1 << 16)
        self.said = (self.said + piece)[-_KEPT:]
        return bool(piece)


def _widen(descriptor: int) -> None:
    """Room for a whole frame: fewer turns of child and reader."""
    try:
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (ImportError, AttributeError, OSError):
        return  # not Linux, or this user's pipes have used up their share: slower, and right all the same


def _words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
