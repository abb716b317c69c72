"""Reading what the system tells in small files: /proc, /sys, /etc. An absent file is no error here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def read_text(path: Path) -> str | None:
    """Without the trailing zero byte or line feed; None where it is not there or cannot be read now.

    A thermal zone of a part that is switched off, for one, is there and answers EAGAIN.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except (OSError, ValueError):
        return None


def read_int(path: Path) -> int | None:
    """A decimal whole number; None as in :func:`read_text`, and for anything else."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None


def is_there(path: Path) -> bool:
    """False, too, where the folder above may not be looked into."""
    try:
        return path.exists()
    except OSError:
        return False


def folders(root: Path, pattern: str) -> Iterator[Path]:
    """What matches, in order; nothing where the folder above may not be looked into."""
    try:
        yield from sorted(root.glob(pattern))
    except OSError:
        return
