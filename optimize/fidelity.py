"""How far one network is from another, measured on images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
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

    def as_record(self) -> dict[str, Any]:
        """With the ratio, of equal networks 300 dB, for JSON knows no infinity."""
        return asdict(self) | {"snr_db": min(300.0, self.snr_db)}


Logits = Callable[[npt.NDArray[np.float32]], npt.NDArray[Any]]
"""float32 [n, 3, size, size] -> logits [n, classes]."""


def compare_logits(reference: Logits, other: Logits, batches: Iterable[npt.NDArray[np.float32]]) -> Fidelity:
    """Of `other` to `reference`. Raises LabError where there are no images."""
    difference = signal = 0.0
    agree = count = 0
    for batch in batches:
        expected, actual = (logits(batch).astype(np.float64) for logits in (reference, other))
        difference += float(np.square(actual - expected).sum())
        signal += float(np.square(expected).sum())
        agree += int((actual.argmax(1) == expected.argmax(1)).sum())
        count += len(batch)
    if count == 0:
        raise LabError("compare: 0 images, at least 1 is needed; give it some of the data set")
    # All-zero logits would be a broken network; the error is then absolute and still tells.
    return Fidelity((difference / (signal or 1.0)) ** 0.5, agree / count, count)


def compare_models(
    reference: onnx.ModelProto, other: onnx.ModelProto, batches: Iterable[npt.NDArray[Any]]
) -> Fidelity:
    """Run both over `batches` (float32 N x 3 x size x size), image by image, and compare their one output.

    ONNX Runtime on the CPU with its optimisations off, so that a Q/DQ network computes what ONNX says and
    not what this CPU's integer kernels do. Raises LabError when there are no images.
    """
    ours, theirs = (session_logits(plain_session(model)) for model in (reference, other))
    return compare_logits(ours, theirs, (image[None] for batch in batches for image in batch))


def session_logits(session: onnxruntime.InferenceSession) -> Logits:
    """Of its one output."""
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


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
