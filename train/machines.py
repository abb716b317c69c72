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
    """Raises LabError where torchrun would restart a run that then could not go on from its checkpoint."""
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    missing = ["run_dir=runs/NAME"] if config.run_dir is None else []
    missing += [] if config.resume else ["resume=true"]
    if restarts and missing:
        raise LabError(
            f"--max-restarts={restarts}, but a restarted run would not find its checkpoint: "
            f"add {' '.join(missing)}, or leave --max-restarts out"
        )
    # torchrun would keep one store for all lives, in which ranks find the addresses of the life before and,
    # in a race, try to connect to those.
    if restarts and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise LabError(
            f"--max-restarts={restarts}, but torchrun shares its store with the ranks, and new ones may "
            "read an address of the life before in it: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
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
