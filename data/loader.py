"""The contract of a loader, and the choice between the two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol, TypedDict

import torch

from configs.schema import LoaderConfig
from data.check import check_images
from data.index import Index
from data.plan import Plan
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.machine import usable_cores


class Batch(NamedTuple):
    images: torch.Tensor
    """float32 [n, 3, size, size] on the rank's device, normalised."""
    labels: torch.Tensor
    """int64 [n] on the rank's device; `IGNORE` where no metric may count the image."""


class LoaderState(TypedDict):
    position: int
    num_steps: int


class Loader(Protocol):
    """Batches of a plan on the rank's device.

    Iterating goes on from the position to the end of that epoch; the next iteration is the next epoch.
    Stopping in the middle and iterating again loses nothing: the position is where the last batch was taken.
    """

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> LoaderState: ...

    def load_state_dict(self, state: LoaderState) -> None: ...

    def close(self) -> None:
        """End the worker threads or processes."""


class Position:
    """Where a loader stands in its plan; shared by the loaders so that both count alike."""

    def __init__(self, num_steps: int) -> None:
        self.value = 0
        self.num_steps = num_steps

    def remaining(self) -> int:
        """Batches to the end of the epoch."""
        return self.num_steps - self.value % self.num_steps

    def state_dict(self) -> LoaderState:
        return {"position": self.value, "num_steps": self.num_steps}

    def load_state_dict(self, state: LoaderState) -> None:
        if state["num_steps"] != self.num_steps:
            raise LabError(
                f"the saved position is in an epoch of {state['num_steps']} batches, but this data makes "
                f"{self.num_steps}: resume with the images and the batch_size of the interrupted run"
            )
        self.value = state["position"]


def changed_images(images: Index) -> LabError | None:
    """What to raise where decoding failed because an image is not what the check saw; None where all are."""
    with TemporaryDirectory() as cache:
        now = check_images(images.paths, Path(cache), usable_cores(), lambda number: None)
    changed = [
        f"  - {path}: {c.note or f'{c.width} x {c.height} px instead of {shape[1]} x {shape[0]}'}"
        for path, shape, c in zip(images.paths, images.shapes.tolist(), now, strict=True)
        if c.broken or [c.height, c.width] != shape
    ]
    if not changed:
        return None
    return LabError(
        "images changed after they were checked:\n" + "\n".join(changed[:20]) + "\n"
        "start again, and the check will list them all"
    )


def build_loader(
    config: LoaderConfig,
    plan: Plan,
    spec: InputSpec,
    device: torch.device,
    *,
    channels_last: bool = False,
    local_world: int = 1,
) -> Loader:
    """The loader that the config names, imported only here so that a machine needs only that one."""
    threads = config.threads or max(1, usable_cores() // local_world)
    if config.name == "dali":
        try:
            from data.dali_loader import DaliLoader
        except ImportError as error:
            raise LabError(
                f"loader=dali needs NVIDIA DALI, which did not load ({error}): "
                "pip install nvidia-dali-cuda130, or use loader=torch"
            ) from error
        return DaliLoader(plan, spec, device, threads, config.prefetch, channels_last)
    from data.torch_loader import TorchLoader

    return TorchLoader(plan, spec, device, threads, config.prefetch, channels_last)
