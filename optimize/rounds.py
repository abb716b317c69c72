"""Stages that work in rounds, each in a folder of its own: begun once, and gone on with after a kill."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.compress import FinetuneConfig, LotteryConfig, PruneConfig, SparsifyConfig
from deploy.bundle import file_sha256
from deploy.errors import LabError
from optimize.finetune import finetune_config, train
from optimize.stage import Context
from train.checkpoint import NAME
from train.result import write_json

BEGUN = "begun.json"
START = "start.pt"
"""Of a round: the changed network that its training starts from."""


def begin(folder: Path, config: PruneConfig | SparsifyConfig | LotteryConfig, source: Path) -> None:
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


def do_rounds(
    source: Path,
    folder: Path,
    context: Context,
    ours: FinetuneConfig | None,
    shares: Sequence[float],
    change: Callable[[Path, Path, float], None],
) -> list[dict[str, Any]]:
    """Change the network to each share in order, and train it after each; the last is left as the stage's.

    `change`: (checkpoint, folder of the round, share) -> START in that folder. `ours`: the training; None for
    none. A round whose START is there is not changed again, and its training goes on where it was. Returns
    the share and the top-1 of each round.
    """
    rounds = []
    for number, share in enumerate(shares, 1):
        own = folder / f"round-{number}"
        start = own / START
        if not start.exists():
            change(source, own, share)
        source, top1 = start, None
        if ours is not None:
            top1 = train(finetune_config(start, own, context, ours), own)["top1"]
            source = own / NAME
        rounds.append({"share": share, "top1": top1})
    leave(source, folder)
    return rounds


def leave(checkpoint: Path, folder: Path) -> None:
    """The last round's checkpoint as the stage's."""
    temporary = folder / f".{NAME}.tmp"
    shutil.copyfile(checkpoint, temporary)
    os.replace(temporary, folder / NAME)
