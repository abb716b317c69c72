"""A runner executes one variant of a bundle. This file is the contract, and what every runner checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.manifest import Bundle
from deploy.tensor_spec import TensorSpec, times

__all__ = ["Arrays", "Feed", "Runner", "TensorSpec", "check_feed", "check_model", "times"]

Feed = Mapping[str, NDArray[Any]]
Arrays = dict[str, NDArray[Any]]


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
    """Raises LabError unless the model has the bundle's inputs and outputs, by name, type and shape; its
    batch may be fixed, and an output's side free."""
    said = "the bundle's input spec says" if bundle.input else "the bundle says"
    for kind, found, wanted in (("input", inputs, bundle.inputs), ("output", outputs, bundle.outputs)):
        names, should = [spec.name for spec in found], [spec.name for spec in wanted]
        if sorted(names) != sorted(should):
            raise LabError(f"{what}: {kind}s {names}, {said} {should}; export it again")
        by_name = {spec.name: spec for spec in wanted}
        for spec in found:
            other = by_name[spec.name]
            free = kind == "output"
            fits = len(spec.shape) == len(other.shape) and all(
                side == must or (free and None in (side, must))
                for side, must in zip(spec.shape[1:], other.shape[1:], strict=True)
            )
            if spec.dtype != other.dtype or not fits:
                raise LabError(
                    f"{what}: {kind} {spec.name!r} is {spec}, {said} {other}; "
                    "export the model with that fixed size (only the batch may be free)"
                )


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
