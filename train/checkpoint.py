"""A checkpoint holds all that it takes to go on bit for bit. Opening one never runs code.

There is no state of a random generator in it: every draw is a function of the seed, the rank and the step
(`data.plan` for images, `train.loop` for dropout, `train.task` for mixup), so the position is enough.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from configs.load import as_dict, from_dict
from configs.schema import TrainConfig
from data.loader import LoaderState
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from train.structure import build_network

FORMAT = 2
NAME = "checkpoint.pt"


class UnreadableError(LabError):
    """A checkpoint that is missing, torn, or none of ours."""


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs trained and evaluated."""
    best_score: float = -1.0
    """Of the run's headline (`train.class_metrics.headline`), at the ends of epochs."""
    best_epoch: int = 0
    nan_steps: int = 0
    """Steps left out because the loss or the gradients were not finite."""


@dataclass(frozen=True)
class Facts:
    """All of a checkpoint but its tensors."""

    config: TrainConfig
    input_spec: InputSpec
    structure: list[dict[str, Any]]
    """Changes to the network that its config names, in order (`train.structure`); empty for one as built."""
    scaler: dict[str, Any]
    loader: LoaderState
    progress: Progress
    metrics: dict[str, float]
    """Of the last evaluation."""


@dataclass(frozen=True)
class Checkpoint(Facts):
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    """By `<parameter>/<state>`, whatever the strategy."""

    @property
    def weights(self) -> dict[str, Any]:
        """What is evaluated and exported: the moving average where there is one."""
        return self.ema if self.ema is not None else self.model


def save_checkpoint(path: Path, checkpoint: Checkpoint, previous: Path | None = None) -> None:
    """Write beside `path`, sync, rename: whatever happens, `path` is a whole checkpoint, the old or the new.

    The old one is kept as `previous`, if that is given.

    Raises LabError where the disk is full.
    """
    write_facts(
        path,
        facts_of(checkpoint)
        | {"model": checkpoint.model, "ema": checkpoint.ema, "optimizer": checkpoint.optimizer},
        previous,
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UnreadableError where the file is missing, torn, or no checkpoint of ours."""
    content = _read(path)
    if "model" not in content:
        raise UnreadableError(f"{path} holds the facts of a sharded checkpoint: give the {NAME} of its run")
    facts = _facts(content)
    return checkpoint_from(facts, content["model"], content["ema"], content["optimizer"])


def facts_of(facts: Facts) -> dict[str, Any]:
    """As plain types; :func:`read_facts` is the inverse."""
    return {
        "format": FORMAT,
        "config": as_dict(facts.config),
        "input_spec": facts.input_spec.to_dict(),
        "structure": facts.structure,
        "scaler": facts.scaler,
        "loader": dict(facts.loader),
        "progress": asdict(facts.progress),
        "metrics": facts.metrics,
    }


def read_facts(path: Path) -> Facts:
    """Of a file written by `save_checkpoint` or `write_facts`. Raises UnreadableError."""
    return _facts(_read(path, mmap=True))


def checkpoint_from(
    facts: Facts, model: dict[str, Any], ema: dict[str, Any] | None, optimizer: dict[str, Any]
) -> Checkpoint:
    own = {field.name: getattr(facts, field.name) for field in fields(Facts)}
    return Checkpoint(**own, model=model, ema=ema, optimizer=optimizer)


def write_facts(path: Path, content: dict[str, Any], previous: Path | None = None) -> None:
    """Beside `path`, synced, renamed. Raises LabError where the disk is full."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            _keep(path, previous)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch's writer turns a full disk into a RuntimeError of its own.
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free >> 20
        kept = "the previous one is untouched" if path.exists() else "there is none yet"
        raise LabError(
            f"the checkpoint {path} could not be written ({str(error)[:160]}); {free} MiB are free there, "
            f"{kept}: make room, then go on with resume=true run_dir={path.parent}"
        ) from error


def _keep(path: Path, previous: Path) -> None:
    """Give the file a second name; it is there under its first one at every moment."""
    temporary = previous.with_name(f".{previous.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    os.replace(temporary, previous)


def _read(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    if not path.is_file():
        raise UnreadableError(f"no checkpoint {path}: give the {NAME} of a run folder")
    try:
        with path.open("rb") as file:
            require_intact(file, facts_only=mmap)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise UnreadableError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read: truncated, damaged, or not "
            f"written by edgelab ({str(error).splitlines()[0][:160]}); use another checkpoint"
        ) from error
    if not isinstance(content, dict) or "format" not in content:
        raise UnreadableError(
            f"{path} holds no edgelab checkpoint; bare weights are not enough, train or resume a run"
        )
    if content["format"] != FORMAT:
        raise UnreadableError(
            f"{path} has format {content['format']}, this edgelab reads {FORMAT}: "
            "use the edgelab that wrote it"
        )
    return content


def require_intact(file: IO[bytes], facts_only: bool = False) -> None:
    """Raises ValueError where a byte is not as torch.save wrote it; leaves the file at its beginning.

    torch writes a CRC-32 of every tensor, and does not look at it when it reads.
    """
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if not facts_only or name.endswith("/data.pkl"):
                with archive.open(name) as entry:
                    while entry.read(1 << 20):
                        pass
    file.seek(0)


def _facts(content: dict[str, Any]) -> Facts:
    return Facts(
        config=from_dict(content["config"], TrainConfig),
        input_spec=InputSpec.from_dict(content["input_spec"]),
        structure=content["structure"],
        scaler=content["scaler"],
        loader=LoaderState(position=content["loader"]["position"], num_steps=content["loader"]["num_steps"]),
        progress=Progress(**content["progress"]),
        metrics=content["metrics"],
    )


def restore_model(checkpoint: Checkpoint) -> nn.Module:
    """The network of a checkpoint with the weights to evaluate and export, in evaluation mode on the CPU.

    Raises LabError where the weights do not fit the network that the checkpoint's config names.
    """
    model = build_network(checkpoint.config.model, checkpoint.input_spec.num_classes, checkpoint.structure)
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        raise LabError(
            f"the weights do not fit the checkpoint's own model.name={checkpoint.config.model.name}: "
            f"{str(error).splitlines()[-1].strip()[:200]}; use another checkpoint"
        ) from error
    return model.eval()


# What may change when a run goes on: where it runs and how it is watched, not what it computes.
_FREE = frozenset(
    {
        "run_dir", "resume", "name", "processes", "device", "compile", "loader", "strategy",
        "log_every", "checkpoint_every", "checkpoint_epochs", "keep_epochs", "diagnose", "profile", "wandb",
    }
)  # fmt: skip


def require_same_run(saved: TrainConfig, wanted: TrainConfig) -> None:
    """Raises LabError that lists every setting in which a run to be continued differs from its checkpoint."""
    before, now = _flat(as_dict(saved)), _flat(as_dict(wanted))
    differences = [
        f"  - {key}: {before.get(key)!r} in the checkpoint, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key.split(".")[0] not in _FREE
    ]
    if differences:
        raise LabError(
            "resume=true, but the checkpoint is of another run:\n"
            + "\n".join(differences)
            + "\nresume with the settings of the checkpoint, or start anew in another run_dir"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
