"""Between fake quantisers and the INT8 file: which scale is which tensor's, and the file's biases."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

from deploy.errors import LabError
from optimize.calibrate import Scales
from optimize.export import folded_norms
from optimize.qdq_placement import quantised_tensors
from train.fake_quant import quantiser
from train.structure import Structure, find_change, plain

SAME = 1e-3
"""Relative difference up to which two tensors are the same; those of different places are about 1 apart."""


def trained_scales(
    model: nn.Module, structure: Structure, fp32_path: Path, images: npt.NDArray[np.float32]
) -> Scales | None:
    """The scales of a quantisation-aware network for its FP32 file; None where it has no fake quantisers.

    `images`: float32 [n, 3, size, size]; every tensor that a fake quantiser sees of them is compared with the
    tensor of the file that gets its scale. Raises LabError where the file quantises other tensors.
    """
    change = find_change(structure, "fake_quant")
    if change is None:
        return None
    places = [(name, side) for name, side in change["activations"]]
    file = onnx.load(fp32_path)
    names = [tensor.name for tensor in quantised_tensors(file)]
    if len(names) != len(places):
        raise LabError(
            f"the network has {len(places)} fake quantisers, its file quantises {len(names)} tensors: "
            "export it again, or train the stage qat again"
        )
    ours, theirs = _seen(model, places, images), _tensors(file, names, images)
    for place, name, mine, other in zip(places, names, ours, theirs, strict=True):
        difference = math.inf
        if mine.shape == other.shape:
            difference = float(np.linalg.norm(mine - other)) / (float(np.linalg.norm(other)) or 1.0)
        if not difference <= SAME:
            raise LabError(
                f"the fake quantiser {'.'.join(place)} does not see what the file's tensor {name!r} holds "
                f"(relative difference {difference:.1e}): the file is of another network, export it again"
            )
    scales = {n: float(quantiser(model, *place).scale) for n, place in zip(names, places, strict=True)}
    bad = {name: value for name, value in scales.items() if not (math.isfinite(value) and value > 0)}
    if bad:
        raise LabError(f"the trained scales {bad} must be finite and above 0: train the stage qat again")
    return Scales("qat", int(change["calibration"]["num_images"]), scales)


@torch.no_grad()
def round_biases(model: nn.Module, s8: onnx.ModelProto) -> None:
    """Give `model`, in place, the biases of its S8 file, which are whole steps of the accumulator.

    They differ by half a step at most; but where the network adds other numbers than its file, integers fall
    to other sides from the first layer on, and each such rounding makes more of them. Where a BatchNorm was
    folded, its bias takes what the file's asks for. Doing it twice changes nothing.
    """
    constants = {constant.name: constant for constant in s8.graph.initializer}
    norms = folded_norms(model)
    for node in s8.graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        layer = node.input[2].removesuffix(".bias")
        bias = torch.from_numpy(numpy_helper.to_array(constants[node.input[2]]).astype(np.float64))
        module = model.get_submodule(norms.get(layer, layer))
        if isinstance(module, nn.BatchNorm2d):
            own = model.get_submodule(layer).bias
            mean, variance = (
                cast(torch.Tensor, t).double() for t in (module.running_mean, module.running_var)
            )
            shifted = mean - (own.double() if isinstance(own, torch.Tensor) else 0.0)
            bias = bias + shifted * module.weight.double() * torch.rsqrt(variance + module.eps)
        cast(torch.Tensor, module.bias).copy_(bias)


@torch.no_grad()
def _seen(
    model: nn.Module, places: list[tuple[str, str]], images: npt.NDArray[np.float32]
) -> list[npt.NDArray[Any]]:
    """What comes to each fake quantiser, with all of them off."""
    network = plain(model).cpu().float().eval()
    seen: dict[nn.Module, npt.NDArray[Any]] = {}

    def keep(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if module in seen:
            raise LabError("a fake quantiser is called twice in a forward pass, and would round two tensors")
        # The block that follows may add to it in place.
        seen[module] = inputs[0].numpy().copy()

    quantisers = [quantiser(network, *place) for place in places]
    for module in quantisers:
        module.register_forward_pre_hook(keep)
    network(torch.from_numpy(images))
    return [seen[module] for module in quantisers]


def _tensors(
    file: onnx.ModelProto, names: list[str], images: npt.NDArray[np.float32]
) -> list[npt.NDArray[Any]]:
    image = file.graph.input[0].name
    computed = [name for name in names if name != image]
    file.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(computed, session.run(computed, {image: images}), strict=True))
    return [values.get(name, images) for name in names]
