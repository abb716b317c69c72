"""What a run that is restarted by its launcher, or spans machines, needs."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from configs.schema import TrainConfig
from data.prepare import Splits
from deploy.errors import LabError
from train.monitor import own_mistakes


def require_resume(config: TrainConfig) -> None:
    """Raises LabError where torchrun would restart a run that then would not go on from its checkpoint."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    missing = ["run_dir=runs/NAME"] if config.run_dir is None else []
    missing += [] if config.resume else ["resume=true"]
    if restarts and missing:
        raise LabError(
            f"--max-restarts={restarts}, but a restarted run would not find its checkpoint: "
            f"add {' '.join(missing)}, or leave --max-restarts out"
        )


def load_shared(folder: Path, rank: int) -> Splits:
    """The indexes that rank 0 has written. Raises LabError where this rank's machine does not see them."""
    with own_mistakes(rank):
        try:
            return Splits.load(folder)
        except FileNotFoundError as error:
            raise LabError(
                f"{folder.absolute()} on {socket.gethostname()}: not there, though rank 0 has just written "
                "it. run_dir must be in a file system that all machines share, at the same path on each"
            ) from error
