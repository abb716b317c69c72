"""Progress bars: drawn on a terminal, silent elsewhere, and nothing that is watched is lost."""

from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from configs.images import LoaderConfig
from data.calibration import image_batches
from deploy.progress import watched
from tests.pictures import save
from tests.test_loaders import SPEC, checked_index

T = TypeVar("T")


def on_a_terminal(work: Callable[[], T]) -> tuple[T, str]:
    """What `work` gives, and what a terminal as stderr gets of it (at most 4 KiB, its buffer)."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream, pytest.MonkeyPatch.context() as patched:
        # Here and not in a fixture: pytest sets it back between the two.
        patched.setattr(sys, "stderr", stream)
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", "100")
        done = work()
    text = b""
    # It arrives in pieces; behind the last of a terminal that was closed Linux gives an error.
    with os.fdopen(ours, "rb", buffering=0) as terminal, contextlib.suppress(OSError):
        while piece := terminal.read(1 << 12):
            text += piece
    return done, text.decode()


def test_a_bar_counts_what_was_worked_on() -> None:
    items, text = on_a_terminal(lambda: list(watched("calibration", [3, 1, 2])))
    assert items == [3, 1, 2]
    assert "calibration" in text
    assert [share for share in ("33%", "67%", "100%") if share in text] == ["33%", "67%", "100%"]


def test_without_rich_a_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    found = on_a_terminal(lambda: list(watched("calibration", [3, 1])))
    assert found == ([3, 1], "\rcalibration  50%\rcalibration 100%\r\n")


def test_no_terminal_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(watched("calibration", [3, 1, 2])) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_walk_over_images_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    paths = [save(tmp_path / f"{number}.png", 40, 40, seed=number) for number in range(35)]
    index = checked_index(paths, tmp_path / "cache")
    config = LoaderConfig(name="torch", threads=1, prefetch=2)
    batches, text = on_a_terminal(lambda: list(image_batches(index, SPEC, config, label="scores")))
    assert np.concatenate(batches).shape == (35, 3, SPEC.size, SPEC.size)
    # A batch of 32, then the 3 that are left; what fills up the last batch is no image.
    assert text == "\rscores  91%\rscores 100%\r\n"
