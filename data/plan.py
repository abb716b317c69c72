"""Which images make up a batch, and how each is cropped: a pure function of (seed, epoch, step).

Training takes global batches from a permutation of the epoch's rows (`data.sampling`) and cuts each into one
slice a rank, so the same images make up a step on one GPU and on eight. The tail that fills no batch is left
out; which images that is changes with the epoch. Evaluation deals every image to exactly one rank and fills
the last batches with repetitions that carry the label `IGNORE`, so that every rank takes the same number of
steps (a strategy that communicates in the forward pass needs that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from configs.images import AugmentConfig, ProgressiveConfig, SamplingConfig
from data.augment import random_erasing, random_ops, training_size
from data.draws import draws
from data.index import Float64, Index, Int64
from data.sampling import SHUFFLE, epoch_rows
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
    ops: Int64
    """[n, num_ops]: RandAugment's operations, places in `data.augment.OPS`; before the flip."""
    parameters: Float64
    """[n, num_ops]: of those operations, see `data.augment.random_ops`."""
    erased: Int64
    """[n, 4]: top, left, height, width in px of the finished image that become 0; all 0: none."""


class Plan(Protocol):
    """A sequence of batches without end; position p is batch p % len(plan) of epoch p // len(plan)."""

    index: Index
    batch_size: int
    """Of one rank."""
    crop_first: bool
    """Whether `windows` are cut before resizing (training) or after (evaluation)."""
    num_ops: int
    """Operations of RandAugment on each image."""
    erases: bool

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
        sampling: SamplingConfig = SHUFFLE,
        progressive: ProgressiveConfig | None = None,
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
        length = len(epoch_rows(sampling, index, seed, 0))
        if length < batch_size:
            most = length // parts * parts
            remedy = f"batch_size={most} or less" if most else "fewer processes or a smaller accumulate"
            which = "" if length == len(index) else f" an epoch of sampling={sampling.name}"
            raise LabError(
                f"batch_size {batch_size} is more than the {length} training images{which}: use {remedy}"
            )
        self.index = index
        self.batch_size = batch_size // parts
        self.num_ops = augment.randaugment.num_ops
        self.erases = augment.erasing.probability > 0
        self._progressive = progressive
        self._spec = spec
        self._augment = augment
        self._sampling = sampling
        self._seed = seed
        self._world = world
        self._rank = rank
        self._steps = length // batch_size * accumulate
        self._accumulate = accumulate
        self._window = shuffle_shards
        self._shards = shards_of_rows(index) if index.shards and shuffle_shards else None
        self._order: tuple[int, Int64] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._steps

    def at(self, position: int) -> BatchPlan:
        epoch, step = divmod(position, self._steps)
        rows = self._global_rows(position)
        size = len(rows)
        # Windows are drawn for the whole batch and then cut, so that they too do not depend on the ranks.
        rng = draws(self._seed, epoch, 1 + step)
        windows = random_windows(rng, self.index.shapes[rows], self._augment)
        flips = rng.random(size) < (0.5 if self._augment.flip else 0.0)
        mine = slice(self._rank * self.batch_size, (self._rank + 1) * self.batch_size)
        side = (
            self._spec.size
            if self._progressive is None
            else training_size(self._progressive, self._spec.size, epoch)
        )
        ops, parameters = random_ops(
            draws(self._seed, epoch, step, "ops"), size, self._augment.randaugment, side
        )
        erased = random_erasing(draws(self._seed, epoch, step, "erasing"), size, self._augment.erasing, side)
        return BatchPlan(
            rows[mine],
            self.index.labels[rows[mine]],
            windows[mine],
            np.full((self.batch_size, 2), side, np.int64),
            flips[mine],
            ops[mine],
            parameters[mine],
            erased[mine],
        )

    def files_of(self, step: int) -> list[str]:
        """Paths of the images of an optimiser step (from 0), over all ranks and accumulated passes."""
        positions = range(step * self._accumulate, (step + 1) * self._accumulate)
        return [self.index.paths[row] for position in positions for row in self._global_rows(position)]

    def _global_rows(self, position: int) -> Int64:
        epoch, step = divmod(position, self._steps)
        known, order = self._order
        if epoch != known:
            rows = epoch_rows(self._sampling, self.index, self._seed, epoch)
            rng = draws(self._seed, epoch, 0)
            order = rows[rng.permutation(len(rows))]
            if self._shards is not None and self._window is not None:
                order = order_by_shard(order, self._shards, self._window, rng)
            self._order = epoch, order  # at once, because the loader's thread asks too
        size = self.batch_size * self._world
        return order[step * size : (step + 1) * size]


class EvalPlan:
    """Every image once, over all ranks, prepared by the InputSpec's rule."""

    crop_first = False
    num_ops = 0
    erases = False

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
        n = len(rows)
        return BatchPlan(
            rows,
            labels,
            self._windows[rows],
            self._resized[rows],
            np.zeros(n, np.bool_),
            np.empty((n, 0), np.int64),
            np.empty((n, 0)),
            np.zeros((n, 4), np.int64),
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
