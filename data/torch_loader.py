"""The plan carried out by torchvision and DataLoader's worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as tv
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image

from data.loader import Batch, LoaderState, Position, changed_images
from data.plan import Plan
from deploy.input_spec import InputSpec

Item = tuple[int, int, list[int], list[int], bool]
"""Row, label, window, resized shape, flip: what a worker needs of a `BatchPlan` for one image."""


class TorchLoader:
    """See `data.loader.Loader`. The workers are started at the first batch and live until `close`."""

    def __init__(
        self,
        plan: Plan,
        spec: InputSpec,
        device: torch.device,
        threads: int,
        prefetch: int,
        channels_last: bool,
    ) -> None:
        self._plan = plan
        self._spec = spec
        self._device = device
        self._workers = threads
        self._prefetch = prefetch
        self._channels_last = channels_last
        self._position = Position(len(plan))
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._position.remaining()):
            yield self._next()

    def state_dict(self) -> LoaderState:
        return self._position.state_dict()

    def load_state_dict(self, state: LoaderState) -> None:
        self._position.load_state_dict(state)
        self.close()

    def close(self) -> None:
        self._stream = None

    def _next(self) -> Batch:
        if self._stream is None:
            loader = DataLoader(
                _Images(self._plan.index.paths, self._spec, self._plan.crop_first),
                batch_sampler=_Items(self._plan, self._position.value),
                num_workers=self._workers,
                prefetch_factor=self._prefetch,
                pin_memory=self._device.type == "cuda",
                # Of its own: by default it draws from the stream that dropout draws from.
                generator=torch.Generator(),
            )
            self._stream = iter(loader)
        try:
            images, labels = next(self._stream)
        except RuntimeError as error:
            self.close()
            rows = np.unique(self._plan.at(self._position.value).rows)
            changed = changed_images(self._plan.index.take(rows))
            if changed is None:
                raise
            raise changed from error.with_traceback(None)  # whose frames would keep the workers alive
        self._position.value += 1
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        images = images.to(self._device, non_blocking=True, memory_format=layout)
        return Batch(images, labels.to(self._device, non_blocking=True))


class _Items:
    """A batch sampler without end, from a position on."""

    def __init__(self, plan: Plan, position: int) -> None:
        self._plan = plan
        self._position = position

    def __iter__(self) -> Iterator[list[Item]]:
        position = self._position
        while True:
            plan = self._plan.at(position)
            position += 1
            yield list(
                zip(
                    plan.rows.tolist(),
                    plan.labels.tolist(),
                    plan.windows.tolist(),
                    plan.resized.tolist(),
                    plan.flips.tolist(),
                    strict=True,
                )
            )


class _Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, paths: tuple[str, ...], spec: InputSpec, crop_first: bool) -> None:
        self._paths = paths
        self._spec = spec
        self._crop_first = crop_first

    def __getitem__(self, item: Item) -> tuple[torch.Tensor, int]:
        row, label, window, resized, flip = item
        image = decode_image(self._paths[row], ImageReadMode.RGB, apply_exif_orientation=True)
        if self._crop_first:
            image = tv.resize(tv.crop(image, *window), resized, antialias=True)
        else:
            # In floating point: what the device computes is not rounded between resizing and normalising.
            image = tv.crop(tv.resize(image.float(), resized, antialias=True), *window)
        if flip:
            image = tv.horizontal_flip(image)
        scale = 255.0
        return tv.normalize(
            image.float(), [scale * m for m in self._spec.mean], [scale * s for s in self._spec.std]
        ), label
