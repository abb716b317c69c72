"""Which process this is among how many: read from the launcher's environment once, checked, passed on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from deploy.errors import LabError

VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
}
"""What each launcher sets: rank, world, and both on the machine."""


@dataclass(frozen=True)
class Ranks:
    rank: int
    world: int
    local_rank: int
    local_world: int
    launched: bool
    """Whether a launcher such as torchrun started this process."""
    horovod: bool = False
    """Whether that launcher is horovodrun."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @classmethod
    def from_environ(cls) -> Ranks:
        """As torchrun or horovodrun sets it. Raises LabError where only a part of it is set, or both are."""
        found = []
        for launcher, names in VARIABLES.items():
            given = {name: os.environ[name] for name in names if name in os.environ}
            if not given:
                continue
            if len(given) < len(names):
                raise LabError(
                    f"the environment has {sorted(given)} but not {sorted(set(names) - set(given))}: "
                    f"start with {launcher}, which sets them all, or unset them"
                )
            rank, world, local_rank, local_world = (int(given[name]) for name in names)
            horovod = launcher == "horovodrun"
            found.append(cls(rank, world, local_rank, local_world, launched=True, horovod=horovod))
        if len(found) > 1:
            raise LabError(
                f"the environment has the variables of both {' and '.join(VARIABLES)}: start one of them only"
            )
        return found[0] if found else cls(0, 1, 0, 1, launched=False)


def choose_device(wanted: str, ranks: Ranks) -> torch.device:
    """The rank's device. Raises LabError where there are more processes than GPUs."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and num_gpus == 0:
        raise LabError("device=cuda, but torch sees no GPU here: check nvidia-smi, or use device=cpu")
    if wanted == "cpu" or num_gpus == 0:
        return torch.device("cpu")
    if ranks.local_rank >= num_gpus:
        raise LabError(
            f"{ranks.local_world} processes on this machine, but {num_gpus} GPU(s): "
            f"use --nproc-per-node={num_gpus} or less, or device=cpu"
        )
    return torch.device("cuda", ranks.local_rank)
