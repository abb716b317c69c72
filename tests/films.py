"""A small real video, made by ffmpeg where it is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_film(folder: Path) -> Path:
    """10 frames in half a second, 90 x 60 px, red above and blue below; VP8, which all decode. Skips the test
    where there is no ffmpeg. Its name has what a command line or a URL may stumble over."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed, which makes the video")
    path = folder / "it's a film, 100%.webm"
    graph = "color=red:90x30:r=20:d=0.5[a];color=blue:90x30:r=20:d=0.5[b];[a][b]vstack"
    quiet = ["ffmpeg", "-loglevel", "error", "-nostdin", "-f", "lavfi"]
    subprocess.run([*quiet, "-i", graph, "-c:v", "libvpx", "-g", "1", str(path)], check=True)
    return path


def cut_film(film: Path, to: Path) -> Path:
    """The first two thirds of its bytes: it ends in the middle of a frame."""
    to.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    return to
