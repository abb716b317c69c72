"""The stage: one FP32 ONNX file and some images to the INT8 files of a bundle."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import numpy_helper

from configs.quantize import CalibrationMethod
from deploy.errors import LabError
from deploy.progress import watched
from optimize.bias_correction import BiasCorrectionRecord, correct_biases
from optimize.calibrate import Scales, calibrate
from optimize.dla import write_dla
from optimize.dla_report import DlaReport
from optimize.equalize import EqualizeRecord, equalize
from optimize.export import check_static_size
from optimize.fidelity import plain_session
from optimize.files import write_bytes, write_model
from optimize.qdq import NumberFormat, emit
from optimize.qdq_lint import count_int8_convs, lint

S8_NAME = "int8.onnx"
U8_NAME = "int8-cpu.onnx"
SCALES_NAME = "scales.json"
# Each costs two passes without any optimisation, 0.5 s for ResNet-50 at 224 px.
CHECKED_IMAGES = 4
CORRECTED_PIXELS = 64 * 224 * 224
"""Of the images for bias correction, which are all held layer by layer. Pixels, for small images have few
values to take the mean of a channel from: with 64 of 32 px MobileNetV2 became worse."""
MIN_AGREEMENT = 0.98
"""Share of the images on which an equalised float network must name the same class as before."""
KeepFloat = Callable[[Path, Scales], Set[str]]
"""Float file and scales to the Conv and Gemm nodes that stay in float."""


@dataclass(frozen=True)
class QuantizeRecord:
    """What the stage did; sizes in bytes."""

    method: str
    num_images: int
    num_tensors: int
    num_convs: int
    num_int8_convs: int
    fp32_bytes: int
    s8_bytes: int
    u8_bytes: int
    num_checked_images: int
    """Images on which every integer of the two files was compared and found equal."""
    keep_float: list[str]
    """Conv and Gemm nodes that stayed in float."""
    equalisation: EqualizeRecord | None
    bias_correction: BiasCorrectionRecord | None
    dla: DlaReport | None = None


def quantize_onnx(
    fp32_path: Path,
    batches: Iterable[npt.NDArray[Any]],
    out_dir: Path,
    method: CalibrationMethod,
    percentile: float,
    *,
    scales: Scales | None = None,
    equalise: bool = False,
    correct: bool = False,
    keep_float: KeepFloat | None = None,
    dla: bool = False,
) -> QuantizeRecord:
    """Calibrate on `batches` (float32 N x 3 x size x size, all held in memory) and write three files to
    `out_dir`: `int8.onnx` for TensorRT, `int8-cpu.onnx` for ONNX Runtime on a CPU, `scales.json` that both
    came from; it also holds the tensors that `keep_float` leaves in float.

    `dla`: also the three files of `optimize.dla`, of the same network and the same scales.
    `scales`, those of quantisation-aware training, stand in the place of calibration. `equalise` and
    `correct`: see `optimize.equalize` and `optimize.bias_correction`; the first before, the second after it.
    Raises LabError for a network with a dynamic size, for a mistake in calibration, and for findings of the
    linter; nothing is written then.
    """
    images = list(batches)
    model = onnx.load(fp32_path)
    check_static_size(model)
    equalised = corrected = None
    with tempfile.TemporaryDirectory() as work:
        source = fp32_path
        if equalise:
            model, equalised = equalize(model, images, MIN_AGREEMENT)
            source = Path(work, "equalised.onnx")
            write_model(model, source)
        scales = scales or calibrate(source, watched("calibration", images), method, percentile)
        kept = keep_float(source, scales) if keep_float else frozenset()
    if correct:
        model, corrected = correct_biases(model, scales, _first(images, num_corrected(images)), kept)
    s8, u8 = (emit(model, scales, form, kept) for form in get_args(NumberFormat))
    findings = lint(s8, kept)
    if findings:
        raise LabError(
            f"quantise: {fp32_path.name} gives a network unfit for TensorRT: " + "; ".join(findings)
        )
    sample = _first(images, CHECKED_IMAGES)
    mismatches = integer_mismatches(s8, u8, sample)
    if mismatches:
        raise RuntimeError(f"{mismatches} integers differ between the two forms of {fp32_path.name}")
    report = write_dla(model, scales, kept, out_dir) if dla else None
    write_model(s8, out_dir / S8_NAME)
    write_model(u8, out_dir / U8_NAME)
    write_bytes(scales.to_json().encode(), out_dir / SCALES_NAME)
    num_int8_convs, num_convs = count_int8_convs(s8)
    return QuantizeRecord(
        method=scales.method,
        num_images=scales.num_images,
        num_tensors=len(scales.tensors),
        num_convs=num_convs,
        num_int8_convs=num_int8_convs,
        fp32_bytes=fp32_path.stat().st_size,
        s8_bytes=(out_dir / S8_NAME).stat().st_size,
        u8_bytes=(out_dir / U8_NAME).stat().st_size,
        num_checked_images=sum(len(batch) for batch in sample),
        keep_float=sorted(kept),
        equalisation=equalised,
        bias_correction=corrected,
        dla=report,
    )


def integer_mismatches(s8: onnx.ModelProto, u8: onnx.ModelProto, batches: Iterable[npt.NDArray[Any]]) -> int:
    """Number of quantised activations, over all tensors and images, in which the two forms differ.

    Both run image by image in ONNX Runtime with its optimisations off, so that each Q and DQ is computed as
    ONNX defines it and the answer does not depend on the CPU's integer kernels.
    Raises LabError when the two quantise different tensors.
    """
    name = s8.graph.input[0].name
    return feed_mismatches(s8, u8, ({name: image[None]} for batch in batches for image in batch))


def feed_mismatches(
    s8: onnx.ModelProto, u8: onnx.ModelProto, feeds: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> int:
    """As :func:`integer_mismatches`, of samples with every input."""
    zero_points = {name: zero_point for name, (zero_point, _) in _integer_tensors(u8).items()}
    if zero_points.keys() != _integer_tensors(s8).keys():
        raise LabError(
            "integer_mismatches: the two files quantise different tensors; emit both from one FP32"
        )
    names = list(zero_points)
    if not names:
        return 0
    sessions = [_exposed_session(model) for model in (s8, u8)]
    mismatches = 0
    for feed in feeds:
        signed, unsigned = (session.run(names, feed) for session in sessions)
        for name, a, b in zip(names, signed, unsigned, strict=True):
            mismatches += int((a != b.astype(np.int16) - zero_points[name]).sum())
    return mismatches


def num_corrected(batches: Sequence[npt.NDArray[Any]]) -> int:
    """How many images, N x C x H x W, bias correction takes: 64 of 224 px, and never less than 16."""
    height, width = batches[0].shape[2:] if batches else (1, 1)
    return max(16, CORRECTED_PIXELS // int(height * width))


def _first(batches: Sequence[npt.NDArray[Any]], count: int) -> list[npt.NDArray[Any]]:
    """The first images, one a batch."""
    return [image[None] for image in itertools.islice(itertools.chain.from_iterable(batches), count)]


def _integer_tensors(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Quantised activation to (zero-point, ONNX element type)."""
    constants = {i.name: i for i in model.graph.initializer}
    return {
        node.input[0]: (
            int(numpy_helper.to_array(constants[node.input[2]])),
            constants[node.input[2]].data_type,
        )
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants
    }


def _exposed_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    for name, (_, element_type) in _integer_tensors(model).items():
        exposed.graph.output.append(onnx.helper.make_tensor_value_info(name, element_type, None))
    return plain_session(exposed)
