"""Random numbers by address: what (seed, epoch, stream) names is drawn without drawing what came before."""

from __future__ import annotations

from typing import Literal

import numpy as np

_FAMILIES = {"batches": 0, "sampling": 1, "ops": 2, "erasing": 3}
"""Independent families, so that turning one kind of draw on leaves the others as they were."""


def draws(
    seed: int, epoch: int, stream: int, family: Literal["batches", "sampling", "ops", "erasing"] = "batches"
) -> np.random.Generator:
    """A counter-based generator (Philox, Salmon et al. 2011) that starts at this address."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, _FAMILIES[family], stream]))
