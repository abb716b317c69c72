"""Bias correction: what quantisation adds to the mean of each channel is taken off its bias.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, in
its empirical form: the error is measured on images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from deploy.errors import LabError
from optimize.calibrate import Scales
from optimize.fidelity import Fidelity, compare_models, plain_session
from optimize.graph_index import GraphIndex
from optimize.qdq import emit

Values = list[npt.NDArray[Any]]
"""One tensor for each image."""


@dataclass(frozen=True)
class BiasCorrectionRecord:
    """What was corrected, and what it gave on the images that it was measured on."""

    num_images: int
    num_layers: int
    num_new_biases: int
    """Layers that had no bias and have one now."""
    largest_shift: float
    """The largest correction of a channel, in standard deviations of its layer's float output."""
    before: Fidelity
    """Logits of the quantised network against the float one, as it was."""
    after: Fidelity


def correct_biases(
    fp32: onnx.ModelProto,
    scales: Scales,
    batches: Iterable[npt.NDArray[Any]],
    keep_float: Set[str] = frozenset(),
) -> tuple[onnx.ModelProto, BiasCorrectionRecord]:
    """A copy of `fp32` whose biases make up for quantisation: `emit` it with the same `scales` and
    `keep_float`.

    For each Conv and Gemm with a constant weight, in the graph's order: the mean over images and pixels of
    float minus quantised output, channel by channel, is added to the bias, and the layers behind see it. The
    copy is for `emit` only: as a float network it is off by what it corrects.

    Cost: each image goes through the float and the Q/DQ network once, for all layers together, and through
    both forms of the Q/DQ network for the record. All images are held at each step, in memory: the live
    tensors of both networks, 20 MB an image for ResNet-50 at 224 px. 64 images are enough for a mean.
    Raises LabError for no images, for scales of another network, and for a bias that is no constant.
    """
    images = [image[None] for batch in batches for image in batch]
    if not images:
        raise LabError("bias correction: 0 images, at least 1 is needed and 64 are usual")
    quantised = emit(fp32, scales, "s8", keep_float)
    result = onnx.ModelProto()
    result.CopyFrom(fp32)
    index = GraphIndex(result.graph)
    # `emit` keeps the layers' order and the names of their outputs.
    layers = [node for node in result.graph.node if index.weight(node) is not None]
    float_walk, int8_walk = _Walk(fp32, images), _Walk(quantised, images)
    num_new = 0
    largest = 0.0
    for node in layers:
        name = node.output[0]
        expected, actual = float_walk.run_to(name), int8_walk.run_to(name)
        # All images are of one size, so the mean of their means is the mean of all pixels.
        error = np.mean([_means(e) - _means(a) for e, a in zip(expected, actual, strict=True)], axis=0)
        spread = float(np.mean([np.var(e, dtype=np.float64) for e in expected])) ** 0.5
        largest = max(largest, float(np.abs(error).max()) / (spread or 1.0))
        num_new += _add_to_bias(result, node, error)
        # What `emit` rounds off a bias, half a step of the accumulator at most, is not in it.
        shift = error.astype(np.float32).reshape(-1, *[1] * (expected[0].ndim - 2))
        int8_walk.values[name] = [value + shift for value in actual]
    before = compare_models(fp32, quantised, images)
    after = compare_models(fp32, emit(result, scales, "s8", keep_float), images)
    return result, BiasCorrectionRecord(len(images), len(layers), num_new, largest, before, after)


def _means(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """float64 [C] of N x C or N x C x H x W."""
    result: npt.NDArray[Any] = value.mean(tuple(i for i in range(value.ndim) if i != 1), np.float64)
    return result


def _add_to_bias(model: onnx.ModelProto, node: onnx.NodeProto, error: npt.NDArray[Any]) -> int:
    """Returns 1 where the layer had none. The bias becomes the layer's own if it was shared."""
    constants = {i.name: i for i in model.graph.initializer}
    old = node.input[2] if len(node.input) > 2 else ""
    if old and old not in constants:
        raise LabError(
            f"bias correction: bias {old!r} of {node.name!r} is no constant; export the network again"
        )
    bias = numpy_helper.to_array(constants[old]) if old else np.float32(0)
    new = np.asarray(bias + error, np.float32)
    readers = sum(list(other.input).count(old) for other in model.graph.node)
    if old and readers == 1:
        constants[old].CopyFrom(numpy_helper.from_array(new, old))
        return 0
    name = f"{node.output[0]}_bias"
    del node.input[2:]
    node.input.append(name)
    model.graph.initializer.append(numpy_helper.from_array(new, name))
    return int(not old)


class _Walk:
    """A network run from layer to layer, each step on all images, that holds only what is read again."""

    def __init__(self, model: onnx.ModelProto, images: Sequence[npt.NDArray[Any]]) -> None:
        self.model = model
        self.constants = {i.name: i for i in model.graph.initializer}
        self.ahead = list(model.graph.node)
        self.values: dict[str, Values] = {model.graph.input[0].name: list(images)}

    def run_to(self, name: str) -> Values:
        """Run all nodes up to the one that makes `name`, and return that tensor; what is put into its place
        in `values` is what the nodes behind it read."""
        end = next(i for i, node in enumerate(self.ahead) if name in node.output) + 1
        nodes, self.ahead = self.ahead[:end], self.ahead[end:]
        read = [i for node in nodes for i in node.input]
        later = {i for node in self.ahead for i in node.input}
        inputs = [i for i in dict.fromkeys(read) if i in self.values]
        outputs = [o for node in nodes for o in node.output if o in later or o == name]
        session = plain_session(self._part(nodes, set(read), inputs, outputs))
        made: list[Values] = [
            session.run(outputs, dict(zip(inputs, row, strict=True)))
            for row in zip(*(self.values[i] for i in inputs), strict=True)
        ]
        kept = {i: self.values[i] for i in self.values if i in later}
        self.values = kept | {
            o: list(column) for o, column in zip(outputs, zip(*made, strict=True), strict=True)
        }
        return self.values[name]

    def _part(
        self, nodes: list[onnx.NodeProto], read: set[str], inputs: list[str], outputs: list[str]
    ) -> onnx.ModelProto:
        types = [helper.np_dtype_to_tensor_dtype(self.values[i][0].dtype) for i in inputs]
        graph = helper.make_graph(
            nodes,
            "part",
            [helper.make_tensor_value_info(i, t, None) for i, t in zip(inputs, types, strict=True)],
            [onnx.ValueInfoProto(name=o) for o in outputs],
            [tensor for name, tensor in self.constants.items() if name in read],
        )
        return helper.make_model(
            graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version
        )
