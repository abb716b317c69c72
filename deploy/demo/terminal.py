"""The demo in a terminal, with no browser: `rich` draws it where it is installed, else a line a second."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from threading import Event
from typing import TextIO

from deploy.demo.lanes import words
from deploy.demo.show import Answer, Show, Shown, Status

REFRESH_S = 0.2
LINE_S = 1.0


def watch(show: Show, stream: TextIO | None = None) -> int:
    """Show it until Ctrl-C or the source's end; the exit code, 1 where the source has failed.

    A picture with bars where `stream` (stdout when None) is a terminal and `rich` is installed. Else a line
    each second that has news, with no escape codes, for a log or a pipe.
    """
    stream = stream or sys.stdout
    try:
        if not (stream.isatty() and _draw(show, stream)):
            _write_lines(show, stream)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # else the flush at exit complains
        return 0
    return 1 if show.status().state == "failed" else 0


def line(status: Status, shown: Shown | None) -> str:
    """All of it in one line."""
    parts = [f"{status.source}: {status.state}" if shown is None else f"#{shown.number}"]
    parts += [f"{status.fps:.1f} fps"] if status.fps is not None else []
    parts += [answer_line(answer) for answer in (shown.answers if shown else ())]
    parts += [f"{status.watts:.1f} W ({status.watts_of})"] if status.watts is not None else []
    if status.state in ("ended", "failed") and shown is not None:
        parts.append(status.state)
    parts += [status.message] if status.message else []
    return printable(" | ".join(parts))


def answer_line(answer: Answer) -> str:
    """A lane with the likeliest class and its latency."""
    if answer.error is not None:
        return f"{words(answer.lane)}: failed"  # the status says why
    best = answer.top[0]
    return f"{words(answer.lane)}: {best.name} {best.probability:.0%} {answer.latency_ms:.2f} ms"


def printable(text: str) -> str:
    """With what could steer the terminal taken out: class names and messages come from elsewhere."""
    return "".join(c if c.isprintable() else "?" for c in text)


def over(status: Status) -> bool:
    """Whether nothing new will come."""
    return status.state in ("ended", "failed")


def _write_lines(show: Show, stream: TextIO) -> None:
    said, pause = None, Event()
    while True:
        status = show.status()
        text = line(status, show.latest())
        if text != said:
            encoding = stream.encoding or "ascii"
            print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
            said = text
        if over(status):
            return
        pause.wait(LINE_S)


def _draw(show: Show, stream: TextIO) -> bool:
    """False where `rich` is not installed."""
    with suppress(ImportError):
        from rich.console import Console
        from rich.live import Live

        from deploy.demo.terminal_view import view

        console, pause = Console(file=stream), Event()
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while not over(show.status()):
                live.update(view(show.status(), show.latest(), console), refresh=True)
                pause.wait(REFRESH_S)
        console.print(view(show.status(), None, console))  # what stays when the screen is given back
        return True
    return False
