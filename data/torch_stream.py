"""The plan carried out by torchvision and DataLoader's worker processes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
import torchvision.transforms.v2.functional as tv
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.io import ImageReadMode, decode_image

from data.fetch import is_plain
from data.loader import Batch, Decoding
from data.plan import Plan
from data.reader import Reader
from data.torch_ops import apply_op
from deploy.errors import LabError
from deploy.input_spec import InputSpec

Item = tuple[int, int, list[int], list[int], bool, list[int], list[float], list[int]]
"""Row, label, window, resized shape, flip, operations, their parameters, erased box: what a worker needs of
a `BatchPlan` for one image."""


class TorchStream:
    """See `data.loader.Stream`."""

    def __init__(self, plan: Plan, decoding: Decoding, position: int) -> None:
        self._decoding = decoding
        loader = DataLoader(
            _Images(plan.index.paths, decoding.spec, plan.crop_first, decoding.reader),
            batch_sampler=_Items(plan, position),
            num_workers=decoding.threads,
            prefetch_factor=decoding.prefetch,
            collate_fn=_collate,
            worker_init_fn=_leave_the_past_alone,
            pin_memory=decoding.device.type == "cuda",
            # Of its own: by default it draws from the stream that dropout draws from.
            generator=torch.Generator(),
        )
        self._batches: Any = iter(loader)

    def next(self) -> Batch:
        batch = next(self._batches)
        if isinstance(batch, LabError):
            raise batch
        images, labels = batch
        device = self._decoding.device
        layout = torch.channels_last if self._decoding.channels_last else torch.contiguous_format
        images = images.to(device, non_blocking=True, memory_format=layout)
        return Batch(images, labels.to(device, non_blocking=True))

    def close(self) -> None:
        self._batches = None  # it ends its workers


def _collate(items: list[tuple[torch.Tensor, int]] | LabError) -> Any:
    return items if isinstance(items, LabError) else default_collate(items)


def _leave_the_past_alone(worker: int) -> None:
    """What the parent has dropped is not the worker's to finalise: the end of a DALI pipeline, say, waits for
    threads that a forked process does not have."""
    gc.freeze()


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
                    plan.ops.tolist(),
                    plan.parameters.tolist(),
                    plan.erased.tolist(),
                    strict=True,
                )
            )


class _Images(Dataset[tuple[torch.Tensor, int]]):
    def __init__(self, paths: tuple[str, ...], spec: InputSpec, crop_first: bool, reader: Reader) -> None:
        self._paths = paths
        self._spec = spec
        self._crop_first = crop_first
        self._reader = reader

    def __getitems__(self, items: list[Item]) -> list[tuple[torch.Tensor, int]] | LabError:
        """A batch; an error is a value, since raised in a worker it would come with that one's traceback."""
        paths = [self._paths[row] for row, *_ in items]
        if all(map(is_plain, paths)):
            return [self._prepare(path, item) for path, item in zip(paths, items, strict=True)]
        try:
            contents = self._reader.read_all(paths)
        except LabError as error:
            return error
        encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
        return [self._prepare(image, item) for image, item in zip(encoded, items, strict=True)]

    def _prepare(self, source: str | torch.Tensor, item: Item) -> tuple[torch.Tensor, int]:
        _, label, window, resized, flip, ops, parameters, erased = item
        image = decode_image(source, ImageReadMode.RGB, apply_exif_orientation=True)
        if self._crop_first:
            image = tv.resize(tv.crop(image, *window), resized, antialias=True)
        else:
            # In floating point: what the device computes is not rounded between resizing and normalising.
            image = tv.crop(tv.resize(image.float(), resized, antialias=True), *window)
        for op, parameter in zip(ops, parameters, strict=True):
            image = apply_op(image, op, parameter)
        if flip:
            image = tv.horizontal_flip(image)
        scale = 255.0
        image = tv.normalize(
            image.float(), [scale * m for m in self._spec.mean], [scale * s for s in self._spec.std]
        )
        top, left, height, width = erased
        image[:, top : top + height, left : left + width] = 0.0
        return image, label
