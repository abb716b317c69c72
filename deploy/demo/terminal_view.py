"""What the terminal shows, drawn with `rich`: the picture in half blocks, and the lanes side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.demo.lanes import words
from deploy.demo.show import TOP, Answer, Shown, Status
from deploy.demo.terminal import printable
from deploy.preprocess import Image

Drawing = Any
"""What `rich` can print; the library is there only where this is called."""

_OTHER_LINES = TOP + 7  # than the picture's
_NAME_SHARE, _FIGURE_WIDTH = 3, 7


def view(status: Status, shown: Shown | None, console: Any) -> Drawing:
    """Fits the console as it is now. The picture is left out where there are no colours or no room."""
    from rich.console import Group
    from rich.text import Text

    width, height = console.size
    unicode = console.encoding.startswith("utf")
    parts: list[Drawing] = [_line(head(status), "bold")]
    rows = height - _OTHER_LINES
    if shown is not None and unicode and rows > 2 and console.color_system in ("truecolor", "256"):
        parts.append(half_blocks(shown.image, min(width, 120), rows))
    if shown is not None:
        parts.append(_lanes(status, shown, width, "█" if unicode else "#"))
    if status.message:
        parts.append(Text(printable(status.message), style="yellow"))
    return Group(*parts)


def head(status: Status) -> str:
    """The line above all."""
    fps = "" if status.fps is None else f", {status.fps:.1f} fps"
    if status.watts is not None:
        return f"{status.source}: {status.state}{fps}, {status.watts:.1f} W ({status.watts_of})"
    return f"{status.source}: {status.state}{fps}, no watts: {status.watts_missing}"


def half_blocks(image: Image, columns: int, rows: int) -> Drawing:
    """The picture in at most so many characters, two pixels one above the other in each."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    small = shrink(image, 2 * rows, columns)
    text = Text(no_wrap=True)
    for above, below in zip(small[::2], small[1::2], strict=True):
        if text:
            text.append("\n")
        for front, back in zip(above.tolist(), below.tolist(), strict=True):
            text.append("▀", Style(color=Color.from_rgb(*front), bgcolor=Color.from_rgb(*back)))
    return text


def shrink(image: Image, height: int, width: int) -> Image:
    """The nearest pixels of a smaller picture of the same shape, with an even number of rows."""
    scale = max(image.shape[0] / height, image.shape[1] / width)
    rows = max(2, int(image.shape[0] / scale) // 2 * 2)
    columns = max(1, int(image.shape[1] / scale))
    down = (np.arange(rows) + 0.5) * image.shape[0] / rows
    across = (np.arange(columns) + 0.5) * image.shape[1] / columns
    return np.asarray(image[down.astype(int)[:, None], across.astype(int)])


def _line(text: str, style: str = "") -> Drawing:
    from rich.text import Text

    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _lanes(status: Status, shown: Shown, width: int, block: str) -> Drawing:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2), expand=True)
    each = max(20, width // len(shown.answers) - 2)
    for _ in shown.answers:
        grid.add_column(width=each)
    rates = [*status.lane_fps, *[None] * len(shown.answers)]
    grid.add_row(*(_lane(a, rate, each, block) for a, rate in zip(shown.answers, rates, strict=False)))
    return grid


def _lane(answer: Answer, rate: float | None, width: int, block: str) -> Drawing:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = _line(words(answer.lane), "bold cyan")
    if answer.error is not None:
        return Group(title, Text(printable(answer.error), style="red"))
    alone = "" if rate is None else f", {rate:.0f} fps alone"
    figures = _line(f"{answer.precision}, {answer.latency_ms:.2f} ms{alone}")
    names = width // _NAME_SHARE
    longest = width - names - _FIGURE_WIDTH - 2
    table = Table.grid(padding=(0, 1))
    for size in (names, longest, _FIGURE_WIDTH):
        table.add_column(width=max(1, size), no_wrap=True, overflow="ellipsis")
    for guess in answer.top:
        bar = Text(block * round(guess.probability * longest), style="green")
        table.add_row(Text(printable(guess.name)), bar, f"{guess.probability:7.1%}")
    return Group(title, figures, table)
