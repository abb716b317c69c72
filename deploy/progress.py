"""A progress bar on stderr, for a person only: silent when stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def progress(label: str, total: float) -> Iterator[Callable[[float], None]]:
    """Yields a function that is told how much was done since its last call.

    It draws only inside that call: a thread that redraws by itself would disturb what is being timed.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _plain(label, total)
        print(file=sys.stderr)
        return
    with Progress(console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task(label, total=total)

        def advance(done: float) -> None:
            bar.advance(task, done)
            bar.refresh()

        yield advance


def watched(label: str, items: Sequence[T]) -> Iterator[T]:
    """The items, with a bar that counts those that were worked on."""
    with progress(label, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


def _plain(label: str, total: float) -> Callable[[float], None]:
    so_far = 0.0

    def advance(done: float) -> None:
        nonlocal so_far
        so_far += done
        print(f"\r{label} {so_far / total:4.0%}", end="", file=sys.stderr, flush=True)

    return advance
