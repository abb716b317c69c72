"""Weights & Biases, for those who ask for it: the scalars that TensorBoard gets."""

from __future__ import annotations

import importlib
import secrets
from pathlib import Path
from typing import Any

from configs.load import as_dict
from configs.schema import TrainConfig, WandbConfig
from deploy.errors import LabError

ID = "wandb.id"


class WandbLog:
    """One W&B run a run folder, also when the run was killed and went on.

    W&B takes no step twice: what the killed run logged after its checkpoint stands, and what the continued
    run does over is the same, so it is dropped there.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def add(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def open_wandb(config: TrainConfig, run_dir: Path) -> WandbLog | None:
    """None where it is off; on rank 0 only. Raises LabError where W&B cannot be reached, or knows us not."""
    if config.wandb.project is None:
        return None
    wandb = _import()
    path = run_dir / ID
    if not path.exists():
        path.write_text(secrets.token_hex(4))
    online = config.wandb.mode == "online"
    try:
        run = wandb.init(
            project=config.wandb.project,
            name=run_dir.name,
            id=path.read_text().strip(),
            resume="allow" if online else None,  # offline, `wandb sync --append` joins the parts
            mode=config.wandb.mode,
            dir=run_dir,
            config=as_dict(config),
            settings=wandb.Settings(console="off"),  # the progress bar is ours
        )
    except wandb.Error as error:
        raise LabError(
            f"wandb.project={config.wandb.project}: {error}; log in with `wandb login`, or use "
            "wandb.mode=offline"
        ) from error
    return WandbLog(run)


def require_wandb(config: WandbConfig) -> None:
    """Raises LabError where it is asked for and not installed."""
    if config.project is not None:
        _import()


def _import() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise LabError(
            f"wandb.project is given, but W&B does not load ({error}): pip install wandb, or leave it out"
        ) from error
