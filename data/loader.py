"""The contract of a loader, and the one that carries out a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol, TypedDict

import numpy as np
import torch

from data.check import check_images
from data.fetch import is_url
from data.index import Index
from data.plan import Plan
from data.reader import Reader
from data.shard_cache import ShardsAhead
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


@dataclass(frozen=True)
class Decoding:
    """How files become batches, besides the plan."""

    spec: InputSpec
    device: torch.device
    threads: int
    """Threads or worker processes."""
    prefetch: int
    """Batches kept ready."""
    channels_last: bool
    reader: Reader
    """Of the images that are no plain local files."""


class Stream(Protocol):
    """The batches of a plan from some position on, without end; what DALI and torch each implement."""

    def next(self) -> Batch:
        """Raises RuntimeError where an image cannot be decoded, LabError where it cannot be read."""

    def close(self) -> None: ...


class PlanLoader:
    """See `Loader`. Its stream opens at the first batch and lives until `close`, over the ends of epochs."""

    def __init__(
        self, plan: Plan, decoding: Decoding, open_stream: Callable[[Plan, Decoding, int], Stream]
    ) -> None:
        self._plan = plan
        self._decoding = decoding
        self._open_stream = open_stream
        self._stream: Stream | None = None
        self._ahead: ShardsAhead | None = None
        self._position = 0

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self) - self._position % len(self)):
            yield self._next()

    def state_dict(self) -> LoaderState:
        return {"position": self._position, "num_steps": len(self)}

    def load_state_dict(self, state: LoaderState) -> None:
        if state["num_steps"] != len(self):
            raise LabError(
                f"the saved position is in an epoch of {state['num_steps']} batches, but this data makes "
                f"{len(self)}: resume with the images and the batch_size of the interrupted run"
            )
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _next(self) -> Batch:
        if self._stream is None:
            cache = self._decoding.reader.cache
            if cache is not None and any(is_url(shard.file) for shard in self._plan.index.shards):
                self._ahead = ShardsAhead(self._plan, self._position, cache)
            self._stream = self._open_stream(self._plan, self._decoding, self._position)
        try:
            batch = self._stream.next()
        except LabError:
            self.close()
            raise
        except RuntimeError as error:
            self.close()
            # It is not said which file it was; the batches in flight bound it.
            ahead = range(self._position, self._position + self._decoding.prefetch + 2)
            rows = np.unique(np.concatenate([self._plan.at(position).rows for position in ahead]))
            changed = changed_images(self._plan.index.take(rows), self._decoding.reader)
            if changed is None:
                raise
            raise changed from error.with_traceback(None)  # whose frames would keep the stream alive
        self._position += 1
        if self._ahead is not None:
            self._ahead.used(self._position)
        return batch


def changed_images(images: Index, reader: Reader) -> LabError | None:
    """What to raise where decoding failed because an image is not what the check saw; None where all are."""
    with TemporaryDirectory() as cache:
        now = check_images(images.paths, Path(cache), usable_cores(), lambda number: None, reader)
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
