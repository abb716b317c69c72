"""Cross-layer equalisation: the channels of a tensor are scaled so that they share its one int8 scale fairly.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1:
behind a ReLU, relu(W1 x) = s relu(W1 x / s) for any s above 0 a channel, and the next layer's weights take
the s. The paper balances the two layers' weights, equation 11, for weights with one scale a tensor. Ours
have one for each output channel: W1 / s quantises like W1, and what a channel of small range loses, it loses
in the activation between. So s follows the activations' ranges, as in Xiao et al. 2022, "SmoothQuant".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from deploy.errors import LabError
from optimize.fidelity import Fidelity, compare_models, plain_session
from optimize.graph_index import GraphIndex, output_axis

# What is done channel by channel and commutes with a factor above 0.
CHANNELWISE = ("MaxPool", "AveragePool", "GlobalAveragePool", "Identity")
TO_VECTOR = ("Flatten", "Reshape")
# Half of the way to equal ranges, in logarithms. All of the way was worse: the second layer's weights pay
# for it where they share a scale, and images beyond the measured range are clipped channel by channel.
EXPONENT = 0.5
# The range of a channel that the images hardly wake is a guess: no share of the limit counts as less.
MIN_SHARE = 2.0**-10


@dataclass(frozen=True)
class Pair:
    """Two layers and the activation between them; nobody else reads what lies between."""

    first: onnx.NodeProto
    activation: onnx.NodeProto | None
    second: onnx.NodeProto
    limit: float
    """The upper one of a Clip, otherwise infinite."""

    @property
    def tensor(self) -> str:
        """The tensor whose channels are equalised: behind the activation."""
        return str((self.activation or self.first).output[0])


@dataclass(frozen=True)
class PairRecord:
    tensor: str
    num_channels: int
    num_dead: int
    """Channels that were always zero, or that the second layer does not read: left alone."""
    smallest_factor: float
    """Channels were divided by factors from this to 1."""
    use_before: float
    """Mean over the live channels of a channel's largest |x| over the tensor's: 1 where all are alike."""
    use_after: float


@dataclass(frozen=True)
class EqualizeRecord:
    num_images: int
    pairs: list[PairRecord]
    fidelity: Fidelity
    """The new float network against the old one, on every fourth image, which set no range."""


def equalize(
    model: onnx.ModelProto, batches: Iterable[npt.NDArray[Any]], min_agreement: float
) -> tuple[onnx.ModelProto, EqualizeRecord]:
    """A copy of the float `model`, BatchNorm folded, with equalised channels, to be calibrated and emitted.

    `batches`: float32 N x 3 x size x size. For each pair of :func:`find_pairs`, channel i with the largest
    magnitude a_i is divided by s_i = sqrt(a_i / limit), where limit is a Clip's upper one and otherwise the
    largest a_i; the second layer's weights for it are multiplied with s_i.

    Behind a Relu, or none, the function stays, but for rounding. A Clip stays a Clip: a channel that reaches
    the limit has a_i = limit and is not touched, and any other is now cut off at sqrt(a_i x limit), above
    all that was seen. So only values beyond the measured range can change; `fidelity` says by how much, on
    images that had no part in it.
    Raises LabError for no images, for a range that is NaN or infinite, and where the two float networks name
    the same class on a smaller share than `min_agreement`, 0 to 1.
    """
    images = [image[None] for batch in batches for image in batch]
    if not images:
        raise LabError("equalise: 0 images, at least 1 is needed and 512 are usual; check the data split")
    seen, held_out = [image for i, image in enumerate(images) if i % 4 != 3], images[3::4] or images
    result = onnx.ModelProto()
    result.CopyFrom(model)
    pairs = find_pairs(result)
    constants = {i.name: i for i in result.graph.initializer}
    # No pair's factors change another's range, so one look is enough, and no rounds as in the paper.
    ranges = channel_ranges(result, [pair.tensor for pair in pairs], seen)
    records = [_equalize_pair(pair, ranges[pair.tensor], constants) for pair in pairs]
    fidelity = compare_models(model, result, held_out)
    if fidelity.top1_agreement < min_agreement:
        raise LabError(
            f"equalise: same class on {fidelity.top1_agreement:.2%} of {fidelity.num_images} images, "
            f"at least {min_agreement:.2%} is asked for; take more images, or leave equalisation out"
        )
    return result, EqualizeRecord(len(images), records, fidelity)


def find_pairs(model: onnx.ModelProto) -> list[Pair]:
    """In the graph's order: Conv or Gemm, perhaps a Relu or a Clip from 0, perhaps pools, Conv or Gemm.

    A chain through a depthwise convolution is two pairs. A tensor with several readers, as in front of a
    residual add, makes none, nor does a parameter that two layers share. A reshape may come before a Gemm
    that has one weight for each channel.
    """
    index = GraphIndex(model.graph)
    found = (_pair(node, index) for node in model.graph.node if index.weight(node) is not None)
    return [pair for pair in found if pair is not None]


def channel_ranges(
    model: onnx.ModelProto, names: Sequence[str], images: Iterable[npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """Name to float64 [C]: each channel's largest |x| over `images`, float32 1 x 3 x H x W each."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = plain_session(exposed)
    ranges: dict[str, npt.NDArray[Any]] = {}
    for image in images:
        values = session.run(None, {model.graph.input[0].name: image})[len(model.graph.output) :]
        for name, value in zip(names, values, strict=True):
            largest = np.abs(value[0].reshape(value.shape[1], -1)).max(1).astype(np.float64)
            if not np.isfinite(largest).all():
                raise LabError(
                    f"equalise: tensor {name!r} holds NaN or infinity; check the checkpoint and the images"
                )
            ranges[name] = np.maximum(ranges.get(name, 0.0), largest)
    return ranges


def _pair(first: onnx.NodeProto, index: GraphIndex) -> Pair | None:
    outputs = {output.name for output in index.graph.output}
    activation, limit, vector, node = None, math.inf, False, first
    while True:
        readers = index.consumers.get(node.output[0], [])
        if len(readers) != 1 or node.output[0] in outputs:
            return None
        before, node = node, readers[0]
        if index.weight(node) is not None:
            break
        limits = index.clip_range(node)
        if limits is not None and limits[0] == 0 and before is first:
            activation, limit = node, limits[1]
        elif node.op_type in TO_VECTOR:
            vector = True
        elif node.op_type not in CHANNELWISE:
            return None
    parameters = [name for name in (*first.input[1:3], node.input[1]) if name]
    own = all(name in index.constants and len(index.consumers[name]) == 1 for name in parameters)
    if not own or (vector and node.op_type != "Gemm"):
        return None
    made = index.constants[first.input[1]].dims[output_axis(first)]
    read = _by_input(node, numpy_helper.to_array(index.constants[node.input[1]]))
    return Pair(first, activation, node, limit) if made == read.shape[0] * read.shape[2] else None


def _equalize_pair(
    pair: Pair, largest: npt.NDArray[Any], constants: dict[str, onnx.TensorProto]
) -> PairRecord:
    """Change the pair's parameters in place; `largest`: float64 [C] as of :func:`channel_ranges`."""
    second = pair.second.input[1]
    weight = numpy_helper.to_array(constants[second])
    read = _by_input(pair.second, weight)
    live = (largest > 0) & (np.abs(read).max((1, 3)).ravel() > 0)
    limit = pair.limit if math.isfinite(pair.limit) else float(largest.max())
    share = np.maximum(np.where(live, largest, limit or 1.0) / (limit or 1.0), MIN_SHARE)
    factor = share**EXPONENT
    for name in pair.first.input[1:3]:
        if name:
            array = numpy_helper.to_array(constants[name])
            axis = output_axis(pair.first) if array.ndim > 1 else 0
            _set(constants[name], array / factor.reshape([-1 if i == axis else 1 for i in range(array.ndim)]))
    scaled = read * factor.reshape(read.shape[0], 1, read.shape[2], 1)
    turned = pair.second.op_type == "Gemm" and output_axis(pair.second) == 1
    _set(constants[second], scaled[0, :, :, 0].T if turned else scaled.reshape(weight.shape))
    return PairRecord(
        tensor=pair.tensor,
        num_channels=len(largest),
        num_dead=int((~live).sum()),
        smallest_factor=float(factor.min()),
        use_before=_use(largest[live]),
        use_after=_use((largest / factor)[live]),
    )


def _by_input(node: onnx.NodeProto, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The weight as groups x outputs of each x inputs of each x kernel."""
    if node.op_type == "Gemm":
        return (weight if output_axis(node) == 0 else weight.T)[None, :, :, None]
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _set(tensor: onnx.TensorProto, value: npt.NDArray[Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), tensor.name))


def _use(largest: npt.NDArray[Any]) -> float:
    return float((largest / largest.max()).mean()) if largest.size else 1.0
