"""How far one network is from another, measured on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from deploy.errors import LabError


@dataclass(frozen=True)
class Fidelity:
    relative_error: float
    """||other - reference||_2 / ||reference||_2 over all logits."""
    top1_agreement: float
    """Share of the images, 0 to 1, on which both name the same class."""
    num_images: int

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio of the logits, dB; infinite where they are equal."""
        return -20 * math.log10(self.relative_error) if self.relative_error > 0 else math.inf


Logits = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
"""float32 [n, 3, size, size] -> logits [n, classes]."""


@dataclass(frozen=True)
class Agreement:
    """As it stands in a record."""

    top1_agreement: float
    """Share of the images, 0 to 1, on which both name the same class."""
    snr_db: float
    """10 log10(||reference||^2 / ||other - reference||^2) over all logits; 300 where they are equal, for JSON
    knows no infinity."""
    num_images: int


def measure_agreement(
    reference: Logits, other: Logits, batches: Iterable[npt.NDArray[np.float32]]
) -> Agreement:
    """Raises LabError where there are no images."""
    found = [(reference(batch), other(batch)) for batch in batches]
    if not found:
        raise LabError("0 images to compare on, at least 1 is needed; check the validation split")
    expected, actual = (np.concatenate(logits) for logits in zip(*found, strict=True))
    agree = float((actual.argmax(1) == expected.argmax(1)).mean())
    return Agreement(agree, min(300.0, snr_db(actual, expected)), len(actual))


def session_logits(session: onnxruntime.InferenceSession) -> Logits:
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def compare_models(
    reference: onnx.ModelProto, other: onnx.ModelProto, batches: Iterable[npt.NDArray[Any]]
) -> Fidelity:
    """Run both over `batches` (float32 N x 3 x size x size), image by image, and compare their one output.

    ONNX Runtime on the CPU with its optimisations off, so that a Q/DQ network computes what ONNX says and
    not what this CPU's integer kernels do. Raises LabError when there are no images.
    """
    sessions = [plain_session(model) for model in (reference, other)]
    names = [model.graph.input[0].name for model in (reference, other)]
    difference = signal = 0.0
    agree = count = 0
    for batch in batches:
        for image in batch:
            expected, actual = (
                session.run(None, {name: image[None]})[0].astype(np.float64)
                for session, name in zip(sessions, names, strict=True)
            )
            difference += float(np.square(actual - expected).sum())
            signal += float(np.square(expected).sum())
            agree += int(actual.argmax() == expected.argmax())
            count += 1
    if count == 0:
        raise LabError("compare: 0 images, at least 1 is needed; give it some of the training set")
    return Fidelity((difference / (signal or 1.0)) ** 0.5, agree / count, count)


def plain_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """On the CPU, every node as ONNX defines it: no optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def snr_db(logits: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """Of `logits` against `reference`, both [n, classes]: 10 log10 of ||reference||^2 over that of the
    difference; infinite where they are equal."""
    noise = float(np.square(logits.astype(np.float64) - reference).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * math.log10(signal / noise) if noise and signal else math.copysign(math.inf, signal - noise)
