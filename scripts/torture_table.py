"""What `scripts.torture` shows: a live table, plain lines without a terminal, and the table of a page."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from scripts.bench_lines import machine_line

COLUMNS = ("scenario", "strategy", "cases", "moments", "runs", "outcome", "seconds")
BEGIN, END = "<!-- torture -->", "<!-- end of torture -->"


@dataclass
class Case:
    """What befell one run, and whether it kept what is promised."""

    scenario: str
    strategy: str
    moments: list[str] = field(default_factory=list)
    lives: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""

    def expect(self, kept: bool, otherwise: str) -> None:
        if not kept:
            self.problems.append(otherwise)

    @property
    def outcome(self) -> str:
        return (
            "NOT AS PROMISED"
            if self.problems
            else f"skipped: {self.skipped}"
            if self.skipped
            else "as promised"
        )


def rows(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """A row for each scenario and strategy, in the order of their first cases."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.scenario, case.strategy), []).append(case)
    found: list[tuple[str, ...]] = []
    for (scenario, strategy), group in groups.items():
        bad = [case for case in group if case.problems]
        outcome = f"{len(bad)} of {len(group)} NOT AS PROMISED" if bad else group[0].outcome
        moments, lives = sum(len(case.moments) for case in group), sum(case.lives for case in group)
        seconds = sum(case.seconds for case in group)
        numbers = (str(len(group)), str(moments), str(lives))
        found.append((scenario, strategy, *numbers, outcome, f"{seconds:.0f}"))
    return found


class Board:
    """Context that shows the cases while they come in."""

    def __init__(self, command: str) -> None:
        self.cases: list[Case] = []
        self._command = command
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._start = time.monotonic()

    def __enter__(self) -> Board:
        self._console.print(machine_line(torch.device("cpu")), self._command, sep="\n", soft_wrap=True)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        self._console.print(table(rows(self.cases)))
        lives = sum(case.lives for case in self.cases)
        bad = sum(bool(case.problems) for case in self.cases)
        minutes = (time.monotonic() - self._start) / 60
        self._console.print(
            f"{len(self.cases)} cases, {lives} runs, {minutes:.1f} min, {bad or 'none'} not as promised"
        )

    def begin(self, case: Case, left: int) -> None:
        if self._console.is_terminal:
            now = (case.scenario, case.strategy, "", "", "", f"... ({left} to go)", "")
            self._live.update(table([*rows(self.cases), now]), refresh=True)

    def end(self, case: Case) -> None:
        self.cases.append(case)
        words = f"{case.scenario} | {case.strategy} | {'; '.join(case.moments)} | {case.lives} runs | "
        # Above the live table, and all there is without a terminal.
        self._console.print(f"{words}{case.outcome} | {case.seconds:.0f} s", soft_wrap=True, markup=False)
        for problem in case.problems:
            self._console.print(f"    {problem}", soft_wrap=True, markup=False)


def table(found: Sequence[Sequence[str]]) -> Table:
    drawn = Table(*COLUMNS)
    for row in found:
        drawn.add_row(*row)
    return drawn


def write_markdown(page: Path, command: str, cases: Sequence[Case]) -> None:
    """Put the table between the two marks of the page; the prose around it stays as it is."""
    text = page.read_text()
    lines = [
        "```sh", f"{command} --markdown {page}", "```", "",
        f"{time.strftime('%Y-%m-%d')}, {machine_line(torch.device('cpu'))}", "",
        f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row)} |" for row in rows(cases)), "",
        f"{len(cases)} cases, {sum(case.lives for case in cases)} runs, "
        f"{sum(bool(case.problems) for case in cases) or 'none'} not as promised.",
    ]  # fmt: skip
    between = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    if not between.search(text):
        raise ValueError(f"{page} lacks the marks {BEGIN} and {END}")
    page.write_text(between.sub(lambda _: "\n".join([BEGIN, *lines, END]), text, count=1))
