"""A runner executes one variant of a bundle. This file is the contract, and what every runner checks."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.manifest import Bundle

Feed = Mapping[str, NDArray[np.float32]]
Shape = tuple[int | None, int, int, int]


class Runner(Protocol):
    """An opened model. `infer` is one synchronous query, host memory to host memory."""

    @property
    def backend(self) -> str: ...
    @property
    def backend_version(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def input_name(self) -> str: ...
    @property
    def input_shape(self) -> Shape:
        """N x 3 x S x S; N is None where the model takes any batch."""
        ...

    @property
    def output_name(self) -> str: ...
    def infer(self, feed: Feed) -> dict[str, NDArray[np.float32]]:
        """{input_name: float32 N x 3 x S x S} to {output_name: float32 N x num_classes}."""
        ...

    def __enter__(self) -> Runner: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_model(what: str, inputs: list[Any], outputs: list[Any], bundle: Bundle) -> Shape:
    """The input shape of a model, its batch None when free.

    inputs, outputs: for each tensor of the model (name, type name, shape), as the backend reports them.
    Raises LabError unless it is one float32 N x 3 x S x S input with the bundle's S and one output of
    N x num_classes.
    """
    if len(inputs) != 1 or len(outputs) != 1:
        names = [t[0] for t in inputs], [t[0] for t in outputs]
        raise LabError(f"{what}: inputs {names[0]} and outputs {names[1]}, must be one each; export it again")
    name, kind, shape = inputs[0]
    side = bundle.input.size
    if kind != "float32" or len(shape) != 4 or list(shape[1:]) != [3, side, side]:
        raise LabError(
            f"{what}: input {name!r} is {kind} {_times(shape)}, the bundle's input spec says float32 "
            f"N x 3 x {side} x {side}; export the model with that fixed size (only the batch may be free)"
        )
    _, _, out = outputs[0]
    classes = bundle.input.num_classes
    if len(out) != 2 or (isinstance(out[1], int) and out[1] != classes):
        raise LabError(f"{what}: output is {_times(out)}, must be N x {classes} classes; export it again")
    return (shape[0] if isinstance(shape[0], int) else None, 3, side, side)


def check_feed(feed: Feed, name: str, shape: Shape) -> None:
    """Raises LabError unless the feed is exactly the one input, float32, of this shape."""
    if set(feed) != {name}:
        raise LabError(f"feed has {sorted(feed)}, the model's only input is {name!r}")
    array = feed[name]
    batch = array.shape[0] if array.ndim else 0
    if array.dtype != np.float32 or array.shape[1:] != shape[1:] or batch < 1:
        found = f"{array.dtype} {_times(array.shape)}"
        raise LabError(f"input {name!r} is {found}, must be float32 {_times(shape)}")
    if shape[0] not in (None, batch):
        raise LabError(f"input {name!r} has batch {batch}, the model was exported for batch {shape[0]} only")


def _times(shape: Any) -> str:
    return " x ".join("N" if side is None else str(side) for side in shape) or "scalar"
