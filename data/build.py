"""The choice of a loader."""

from __future__ import annotations

import torch

from configs.images import DataConfig, LoaderConfig
from data.loader import Decoding, Loader, PlanLoader
from data.plan import Plan
from data.reader import LOCAL, reader_of
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.machine import usable_cores


def build_loader(
    config: LoaderConfig,
    plan: Plan,
    spec: InputSpec,
    device: torch.device,
    *,
    channels_last: bool = False,
    local_world: int = 1,
    data: DataConfig | None = None,
) -> Loader:
    """The loader that the config names, imported only here so that a machine needs only that one.

    `data` says how images in shards or in a store are reached; None where all are plain local files.
    """
    threads = config.threads or max(1, usable_cores() // local_world)
    reader = reader_of(data, plan.index) if data else LOCAL
    decoding = Decoding(spec, device, threads, config.prefetch, channels_last, reader)
    if config.name == "dali":
        try:
            from data.dali_stream import DaliStream
        except ImportError as error:
            raise LabError(
                f"loader=dali needs NVIDIA DALI, which did not load ({error}): "
                "pip install nvidia-dali-cuda130, or use loader=torch"
            ) from error
        return PlanLoader(plan, decoding, DaliStream)
    from data.torch_stream import TorchStream

    return PlanLoader(plan, decoding, TorchStream)
