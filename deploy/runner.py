"""A runner executes one variant of a bundle. This file is the contract, and what every runner checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.manifest import Bundle

Feed = Mapping[str, NDArray[Any]]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model. `dtype` is numpy's name for it; a side is None where it is free."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {times(self.shape)}"


class Runner(Protocol):
    """An opened model. `infer` is one synchronous query, host memory to host memory."""

    @property
    def backend(self) -> str: ...
    @property
    def backend_version(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def precision(self) -> str | None:
        """What it computes in, as the backend itself says; None where it does not say."""
        ...

    @property
    def device(self) -> str | None:
        """What it computes on, where that is not the CPU."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """In the model's order. The first side of each is the batch, None where the model takes any."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    def infer(self, feed: Feed) -> Arrays:
        """{name: array} of every input to {name: array} of every output.

        Raises LabError for a name, shape or type that the model does not take.
        """
        ...

    def __enter__(self) -> Runner: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_model(
    what: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], bundle: Bundle
) -> None:
    """Raises LabError unless the model is one float32 N x 3 x S x S input with the bundle's S and one output
    of N x num_classes."""
    if len(inputs) != 1 or len(outputs) != 1:
        names = [t.name for t in inputs], [t.name for t in outputs]
        raise LabError(f"{what}: inputs {names[0]} and outputs {names[1]}, must be one each; export it again")
    image, side = inputs[0], bundle.input.size
    if image.dtype != "float32" or len(image.shape) != 4 or image.shape[1:] != (3, side, side):
        raise LabError(
            f"{what}: input {image.name!r} is {image}, the bundle's input spec says float32 "
            f"N x 3 x {side} x {side}; export the model with that fixed size (only the batch may be free)"
        )
    out, classes = outputs[0].shape, bundle.input.num_classes
    if len(out) != 2 or out[1] not in (None, classes):
        raise LabError(f"{what}: output is {times(out)}, must be N x {classes} classes; export it again")


def check_feed(feed: Feed, inputs: Sequence[TensorSpec]) -> None:
    """Raises LabError unless the feed is exactly these inputs, in type and shape, all of one batch."""
    if set(feed) != {spec.name for spec in inputs}:
        names = [spec.name for spec in inputs]
        only = f"the model's only input is {names[0]!r}" if len(names) == 1 else f"the model takes {names}"
        raise LabError(f"feed has {sorted(feed)}, {only}")
    for spec in inputs:
        array = feed[spec.name]
        batch = array.shape[0] if array.ndim else 0
        fits = array.ndim == len(spec.shape) and all(
            side in (None, found) for side, found in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits or batch < 1:
            found = f"{array.dtype} {times(array.shape)}"
            raise LabError(f"input {spec.name!r} is {found}, must be {spec}")
        if spec.shape[0] not in (None, batch):
            raise LabError(
                f"input {spec.name!r} has batch {batch}, the model was exported for batch "
                f"{spec.shape[0]} only"
            )
    if len({feed[spec.name].shape[0] for spec in inputs}) > 1:
        batches = {spec.name: feed[spec.name].shape[0] for spec in inputs}
        raise LabError(f"the inputs have different batches: {batches}")


def times(shape: Sequence[int | None]) -> str:
    """A shape in words: N x 3 x 224 x 224, a free side that is not the batch as ?."""
    free = ["N" if i == 0 else "?" for i in range(len(shape))]
    return (
        " x ".join(f if side is None else str(side) for f, side in zip(free, shape, strict=True)) or "scalar"
    )
