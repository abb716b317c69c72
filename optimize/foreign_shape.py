"""The free sides of a model of anyone's: fixed to its samples', all but the batch, which is tried."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime

from deploy.errors import LabError
from deploy.runner import Arrays
from deploy.tensor_spec import TensorSpec, times
from optimize.fidelity import plain_session
from optimize.foreign import Foreign, fix_dims

Sides = Mapping[str, Sequence[int]]
"""For each input its shape without the batch."""


def settle(foreign: Foreign, sides: Sides, say: Callable[[str], None]) -> Foreign:
    """The model with these sides, and with the outputs that it then has. The batch stays free where the model
    says so and can do so; else it is 1. What was fixed is said. Raises LabError."""
    feed = {s.name: np.zeros((1, *sides[s.name]), s.dtype) for s in foreign.inputs}
    fixed = fix_dims(foreign, [feed])
    changed = [
        f"{new.name} {times(old.shape)} is {times(new.shape)}"
        for old, new in zip(foreign.inputs, fixed.inputs, strict=True)
        if old != new
    ]
    if changed:
        say(f"sides fixed by the samples: {'; '.join(changed)}")
    model = onnx.ModelProto()
    model.CopyFrom(fixed.model)
    one = _run(model, fixed.inputs, 1)
    if wrong := {name: times(array.shape) for name, array in one.items() if array.shape[:1] != (1,)}:
        raise LabError(
            f"for one sample the outputs {wrong} do not begin with a batch of 1: what is counted, as boxes "
            "after a suppression are, cannot be compared; export the model without that last step"
        )
    inputs = fixed.inputs
    free = all(spec.shape[0] is None for spec in inputs)
    if free and (reason := _refuses_two(model, inputs, one)):
        say(f"the model says that it takes any batch, but {reason}: it is taken for a model of batch 1")
        free = False
    inputs = tuple(replace(spec, shape=(None if free else 1, *spec.shape[1:])) for spec in inputs)
    outputs = tuple(
        TensorSpec(o.name, str(one[o.name].dtype), (None if free else 1, *one[o.name].shape[1:]))
        for o in model.graph.output
    )
    _give_shapes(model.graph.input, inputs)
    _give_shapes(model.graph.output, outputs)
    return replace(fixed, model=model, inputs=inputs, outputs=outputs)


def class_output_of(wanted: str | None, outputs: Sequence[TensorSpec]) -> str | None:
    """The output that names a class; `auto`: the only one, if it is N x classes. Raises LabError for another
    shape or name."""
    candidates = [o.name for o in outputs if len(o.shape) == 2 and (o.shape[1] or 0) >= 2]
    if wanted == "auto":
        return candidates[0] if len(outputs) == len(candidates) == 1 else None
    if wanted is not None and wanted not in candidates:
        raise LabError(
            f"class_output={wanted}: must be an output N x classes; there are "
            f"{ {o.name: str(o) for o in outputs} }"
        )
    return wanted


def _give_shapes(tensors: Iterable[onnx.ValueInfoProto], specs: Sequence[TensorSpec]) -> None:
    shapes = {spec.name: spec.shape for spec in specs}
    for tensor in tensors:
        sides = ["batch" if side is None else side for side in shapes[tensor.name]]
        kind = tensor.type.tensor_type.elem_type
        tensor.CopyFrom(onnx.helper.make_tensor_value_info(tensor.name, kind, sides))


def _run(model: onnx.ModelProto, inputs: Sequence[TensorSpec], batch: int) -> Arrays:
    """Of zeros."""
    try:
        session = plain_session(model)
        feed = {s.name: np.zeros((batch, *(side or 1 for side in s.shape[1:])), s.dtype) for s in inputs}
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed), strict=True))
    # Its exceptions share no base but Exception.
    except Exception as error:
        shown = ", ".join(f"{spec.name} {spec}" for spec in inputs)
        raise LabError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the model on {batch} x {shown}: {error}; "
            "give samples of another shape, or export the model again"
        ) from error


def _refuses_two(model: onnx.ModelProto, inputs: Sequence[TensorSpec], one: Arrays) -> str | None:
    """Why a batch of two is none; None where it is."""
    try:
        two = _run(model, inputs, 2)
    except LabError as error:
        return str(error.__cause__).strip().splitlines()[0]
    for name, array in two.items():
        if array.shape != (2, *one[name].shape[1:]):
            return f"gives {name} {times(array.shape)} for two samples"
    return None
