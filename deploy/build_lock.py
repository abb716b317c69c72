"""One engine build at a time on a machine: two share its memory and spoil each other's kernel timings."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.errors import LabError

DEFAULT_PATH = Path(tempfile.gettempdir()) / "edgelab-build.lock"


@contextmanager
def build_lock(what: str, say: Callable[[str], None], path: Path = DEFAULT_PATH) -> Iterator[None]:
    """Held while `what` is built. Whoever waits says so, and for whom; a process that dies lets go.

    Raises LabError where the file cannot be opened.
    """
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "another process"
            say(f"{what}: waits until {holder} has built: one build at a time on this machine ({path})")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(OSError):  # a full disk: whoever waits is not told for whom
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}, which builds {what},".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """For every user of the machine: the file is left there, and whoever made it lets all write."""
    try:
        try:
            # Without O_CREAT first: Linux refuses that for another user's file in a sticky folder.
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            os.fchmod(descriptor, 0o666)
            return descriptor
    except OSError as error:
        raise LabError(
            f"{path}: the lock of engine builds cannot be opened ({error.strerror}): remove it, or set "
            "TMPDIR to a folder that you can write"
        ) from error
