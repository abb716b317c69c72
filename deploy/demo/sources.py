"""What `--source` may name."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.demo.commands import camera, video, without_password
from deploy.demo.folder import from_folder
from deploy.demo.moving import Pictures, from_camera, from_video
from deploy.errors import LabError

UPLOAD = "upload"
KINDS = "camera:0, camera:/dev/video0, csi:0, a video's file or URL, a folder of images, or upload"


@dataclass(frozen=True)
class Source:
    """pictures: None where nothing is captured. is_video: a file, whose first picture is waited for."""

    name: str
    pictures: Pictures | None
    is_video: bool = False


def find_source(text: str, width: int, loop: bool = True) -> Source:
    """The source of that name. width: the most that moving pictures are wide, in px.

    loop: whether a video and a folder begin again at their end. Raises LabError for what is not there, and
    where the program that reads it is not installed.
    """
    if text == UPLOAD:
        return Source(text, None)
    path = Path(text)
    if path.is_dir():
        return Source(text, from_folder(path, loop))
    if sys.platform != "linux":
        raise LabError(
            f"source {text!r}: cameras and videos are read on Linux only; give a folder, or upload"
        )
    kind, colon, name = text.partition(":")
    if kind in ("camera", "csi") and colon:
        if not (name.isdigit() or (kind == "camera" and name.startswith("/"))):
            raise LabError(f"source {text!r}: name the camera by its number, such as {kind}:0")
        camera(text, width)  # raises now, not in a thread
        return Source(text, from_camera(text, partial(camera, text, width)))
    if "://" in text:
        command = video(text, width)
        name = without_password(text)
        return Source(name, from_camera(name, lambda: command))
    if not path.is_file():
        raise LabError(f"source {text!r}: no such file or folder; there are: {KINDS}")
    return Source(text, from_video(path.name, video(str(path), width), loop), is_video=True)
