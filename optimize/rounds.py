"""Stages that train in rounds, each in a folder of its own: begun once, and gone on with after a kill."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from configs.compress import LotteryConfig, SparsifyConfig
from deploy.bundle import file_sha256
from deploy.errors import LabError
from train.checkpoint import NAME
from train.result import write_json

BEGUN = "begun.json"


def begin(folder: Path, config: SparsifyConfig | LotteryConfig, source: Path) -> None:
    """Note what the rounds of a stage are made from.

    Raises LabError where the folder has rounds of other settings or of another checkpoint.
    """
    settings = asdict(config)
    ours = {"settings": settings, "source_sha256": file_sha256(source)}
    file = folder / BEGUN
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, ours)
        return
    theirs = json.loads(file.read_text())
    if theirs != ours:
        other = [
            f"{key}={theirs['settings'].get(key)!r} there, {value!r} now"
            for key, value in settings.items()
            if theirs["settings"].get(key) != value
        ] or ["another checkpoint went in"]
        raise LabError(
            f"{folder} was begun with other settings ({'; '.join(other)}): give another out=..., or remove it"
        )


def leave(checkpoint: Path, folder: Path) -> None:
    """The last round's checkpoint as the stage's."""
    temporary = folder / f".{NAME}.tmp"
    shutil.copyfile(checkpoint, temporary)
    os.replace(temporary, folder / NAME)
