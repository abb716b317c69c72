"""Which strategy a run has: the one place that knows them all."""

from __future__ import annotations

import torch

from configs.schema import StrategyConfig
from deploy.errors import LabError
from train.ranks import Ranks
from train.strategy import Single, Strategy

LAUNCHERS = {
    "torchrun": "torchrun --standalone --nproc-per-node=2",
    "horovodrun": "horovodrun --gloo -np 2 python",
}
"""How each starts two ranks."""


def build_strategy(config: StrategyConfig, ranks: Ranks, device: torch.device, precision: str) -> Strategy:
    """The strategy that the config names. Raises LabError where it does not fit the launcher."""
    name = config.name
    if name == "auto":
        name = "horovod" if ranks.horovod else "ddp" if ranks.launched else "single"
    if name == "single" and ranks.world > 1:
        raise LabError(
            f"strategy=single, but {ranks.world} processes were started, which would train apart: "
            "use strategy=auto, or one process"
        )
    if name == "single":
        return Single(ranks, device, precision)
    launcher = "horovodrun" if ranks.horovod else "torchrun" if ranks.launched else "no launcher"
    needed = "horovodrun" if name == "horovod" else "torchrun"
    if launcher != needed:
        raise LabError(
            f"strategy={name}, but {launcher} started this process: "
            f"{LAUNCHERS[needed]} -m train strategy={name} ..."
        )
    # Imported here, so that a run needs only what its own strategy needs.
    if name == "ddp":
        from train.ddp import DDP

        return DDP(ranks, device, precision, config.timeout_s)
    if name == "horovod":
        from train.horovod import Horovod

        return Horovod(ranks, device, precision, config)
    if precision == "fp16":
        raise LabError(
            f"precision=fp16 scales its gradients by the whole network, which strategy={name} splits: "
            "use precision=bf16 or fp32, or strategy=ddp"
        )
    if name == "fsdp":
        from train.fsdp import FSDP

        return FSDP(ranks, device, precision, config.timeout_s)
    from train.pipeline import Pipeline

    return Pipeline(ranks, device, precision, config.timeout_s, config.microbatches)
