"""Which images make up a batch, and how each is cropped: a pure function of (seed, epoch, step).

Training takes global batches from a permutation of the epoch and cuts each into one slice a rank, so the
same images make up a step on one GPU and on eight. The tail that fills no batch is left out; which images
that is changes with the epoch. Evaluation deals every image to exactly one rank and fills the last batches
with repetitions that carry the label `IGNORE`, so that every rank takes the same number of steps (a strategy
that communicates in the forward pass needs that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from configs.schema import AugmentConfig
from data.index import Index, Int64
from data.shard_order import order_by_shard, shards_of_rows
from deploy.errors import LabError
from deploy.input_spec import InputSpec

IGNORE = -1
"""Label of a sample that no metric may count."""

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BatchPlan:
    """One rank's batch of n images."""

    rows: Int64
    """[n] into the index."""
    labels: Int64
    """[n]; IGNORE for a repetition."""
    windows: Int64
    """[n, 4]: top, left, height, width in px, of the upright image or, where the plan does not crop first,
    of the resized one."""
    resized: Int64
    """[n, 2]: height and width in px that the window or the whole image is resized to."""
    flips: Bool
    """[n]: mirrored left to right."""


class Plan(Protocol):
    """A sequence of batches without end; position p is batch p % len(plan) of epoch p // len(plan)."""

    index: Index
    batch_size: int
    """Of one rank."""
    crop_first: bool
    """Whether `windows` are cut before resizing (training) or after (evaluation)."""

    def __len__(self) -> int: ...

    def at(self, position: int) -> BatchPlan: ...


class TrainPlan:
    """Shuffled, augmented training batches.

    `batch_size` is the global one of an optimiser step; each is dealt in `accumulate` batches, each of those
    to `world` ranks. Images in shards are mixed within groups of `shuffle_shards` of them, or over all where
    it is None. Raises LabError where that does not divide or the split has fewer images than a batch.
    """

    crop_first = True

    def __init__(
        self,
        index: Index,
        spec: InputSpec,
        augment: AugmentConfig,
        *,
        batch_size: int,
        accumulate: int,
        rank: int,
        world: int,
        seed: int,
        shuffle_shards: int | None = None,
    ) -> None:
        parts = accumulate * world
        if batch_size % parts:
            below = batch_size // parts * parts
            raise LabError(
                f"batch_size {batch_size} is the global batch and does not divide into {world} rank(s) x "
                f"{accumulate} accumulated pass(es): use {f'{below} or ' if below else ''}{below + parts}, "
                "or another number of processes"
            )
        if len(index) < batch_size:
            most = len(index) // parts * parts
            remedy = f"batch_size={most} or less" if most else "fewer processes or a smaller accumulate"
            raise LabError(
                f"batch_size {batch_size} is more than the {len(index)} training images: use {remedy}"
            )
        self.index = index
        self.batch_size = batch_size // parts
        self._spec = spec
        self._augment = augment
        self._seed = seed
        self._world = world
        self._rank = rank
        self._steps = len(index) // batch_size * accumulate
        self._window = shuffle_shards
        self._shards = shards_of_rows(index) if index.shards and shuffle_shards else None
        self._epoch = -1
        self._order: Int64 = np.empty(0, np.int64)

    def __len__(self) -> int:
        return self._steps

    def at(self, position: int) -> BatchPlan:
        epoch, step = divmod(position, self._steps)
        if epoch != self._epoch:
            rng = _generator(self._seed, epoch, 0)
            self._order = rng.permutation(len(self.index))
            if self._shards is not None and self._window is not None:
                self._order = order_by_shard(self._order, self._shards, self._window, rng)
            self._epoch = epoch
        size = self.batch_size * self._world
        rows = self._order[step * size : (step + 1) * size]
        # Windows are drawn for the whole batch and then cut, so that they too do not depend on the ranks.
        rng = _generator(self._seed, epoch, 1 + step)
        windows = random_windows(rng, self.index.shapes[rows], self._augment)
        flips = rng.random(size) < (0.5 if self._augment.flip else 0.0)
        mine = slice(self._rank * self.batch_size, (self._rank + 1) * self.batch_size)
        resized = np.full((self.batch_size, 2), self._spec.size, np.int64)
        return BatchPlan(rows[mine], self.index.labels[rows[mine]], windows[mine], resized, flips[mine])


class EvalPlan:
    """Every image once, over all ranks, prepared by the InputSpec's rule."""

    crop_first = False

    def __init__(self, index: Index, spec: InputSpec, *, batch_size: int, rank: int, world: int) -> None:
        self.index = index
        self.batch_size = batch_size
        shapes = [spec.resized_shape(int(h), int(w)) for h, w in index.shapes]
        offsets = [spec.crop_offset(h, w) for h, w in shapes]
        self._resized = np.array(shapes, np.int64).reshape(-1, 2)
        self._windows = np.hstack(
            [np.array(offsets, np.int64).reshape(-1, 2), np.full((len(index), 2), spec.size, np.int64)]
        )
        share = -(-len(index) // world)
        self._steps = -(-share // batch_size)
        padded = np.arange(rank, self._steps * batch_size * world, world)
        self._valid = padded < len(index)
        self._rows = np.where(self._valid, padded, 0)

    def __len__(self) -> int:
        return self._steps

    def at(self, position: int) -> BatchPlan:
        step = position % self._steps
        cut = slice(step * self.batch_size, (step + 1) * self.batch_size)
        rows, valid = self._rows[cut], self._valid[cut]
        labels = np.where(valid, self.index.labels[rows], IGNORE)
        return BatchPlan(
            rows, labels, self._windows[rows], self._resized[rows], np.zeros(len(rows), np.bool_)
        )


def random_windows(rng: np.random.Generator, shapes: Int64, augment: AugmentConfig) -> Int64:
    """Random resized crops [n, 4] (top, left, height, width in px) of images with these shapes [n, 2].

    The rule of Szegedy et al. 2015 as torchvision has it: ten tries at an area uniform in
    [min_scale, 1] and an aspect ratio log-uniform in [1/max_ratio, max_ratio]; the first that fits is taken,
    else the largest centred window within the ratios.
    """
    n, tries = len(shapes), 10
    height, width = shapes[:, :1], shapes[:, 1:]
    area = height * width * rng.uniform(augment.min_scale, 1.0, (n, tries))
    log_ratio = np.log(augment.max_ratio)
    ratio = np.exp(rng.uniform(-log_ratio, log_ratio, (n, tries)))
    place = rng.random((n, 2))
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    first = np.argmax(fits, axis=1)
    every = np.arange(n)
    height, width = height[:, 0], width[:, 0]
    aspect = np.clip(width / height, 1 / augment.max_ratio, augment.max_ratio)
    whole_h = np.minimum(height, np.rint(width / aspect).astype(np.int64))
    whole_w = np.minimum(width, np.rint(height * aspect).astype(np.int64))
    found = fits.any(axis=1)
    h = np.where(found, h[every, first], whole_h)
    w = np.where(found, w[every, first], whole_w)
    top = np.where(found, np.floor(place[:, 0] * (height - h + 1)), (height - h) // 2).astype(np.int64)
    left = np.where(found, np.floor(place[:, 1] * (width - w + 1)), (width - w) // 2).astype(np.int64)
    return np.stack([top, left, h, w], axis=1)


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Counter-based, so that any (epoch, step) is reached without drawing what came before."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, stream]))
