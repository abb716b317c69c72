"""From ONNX files to the bundle that goes to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from data.index import Index
from deploy.bundle import Bundle, Variant, write_bundle, write_tensor_bundle
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from deploy.tensors import Tensors
from optimize.fidelity import plain_session
from optimize.foreign import Foreign

_VERSIONS_OF = ("edgelab", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy")


def build_bundle(
    path: Path,
    *,
    name: str,
    spec: InputSpec,
    variants: Sequence[Variant],
    models: Mapping[str, Path],
    answers: Mapping[str, Path],
    samples: Index,
    commands: Sequence[str],
) -> Bundle:
    """Write the bundle with the sample images and what each variant answers to them. Of `models` those that
    no variant names stay behind. `answers`: for a variant that ONNX Runtime cannot run, a file that it can.

    The answers are computed as ONNX defines the operators, without any backend's optimisations, so that every
    device is held against the same numbers. Raises LabError; a bundle that was at `path` stays then.
    """
    inputs = np.stack([preprocess(load_image(image), spec) for image in samples.paths])
    return write_bundle(
        path,
        name=name,
        input=spec,
        variants=variants,
        models={variant.name: models[variant.name] for variant in variants},
        samples=[(Path(p), int(label)) for p, label in zip(samples.paths, samples.labels, strict=True)],
        expected={v.name: logits_of(answers.get(v.name, models[v.name]), inputs) for v in variants},
        versions=_versions(),
        commands=commands,
    )


def build_tensor_bundle(
    path: Path,
    *,
    name: str,
    foreign: Foreign,
    spec: InputSpec | None,
    class_output: str | None,
    variants: Sequence[Variant],
    models: Mapping[str, Path],
    samples: Tensors,
    commands: Sequence[str],
) -> Bundle:
    """As :func:`build_bundle`, of a model of anyone's, on samples that are tensors. Raises LabError, also
    where the model answers with something that is no number."""
    expected = {v.name: answers_of(models[v.name], samples) for v in variants}
    for output, array in expected[variants[0].name].items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LabError(
                f"the model answers with NaN or infinity in {output!r}: its samples may have masks without a "
                "single token, or values far from those that it was trained on; give others"
            )
    return write_tensor_bundle(
        path,
        name=name,
        input=spec,
        inputs=foreign.inputs,
        outputs=foreign.outputs,
        class_output=class_output,
        variants=variants,
        models={variant.name: models[variant.name] for variant in variants},
        samples=samples,
        expected=expected,
        versions=_versions(),
        commands=commands,
    )


def answers_of(model: Path, samples: Tensors) -> dict[str, npt.NDArray[Any]]:
    """By output, sample by sample, for the batch may be fixed; each operator as ONNX defines it."""
    session = plain_session(onnx.load(model))
    names = [output.name for output in session.get_outputs()]
    answers = [session.run(names, dict(one.arrays)) for one in samples.batches(1)]
    return {name: np.concatenate([one[i] for one in answers]) for i, name in enumerate(names)}


def logits_of(model: Path, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """float32 [n, num_classes], each operator as ONNX defines it."""
    session = plain_session(onnx.load(model))
    (logits,) = session.run(None, {session.get_inputs()[0].name: inputs})
    result: npt.NDArray[np.float32] = logits
    return result


def _versions() -> dict[str, Any]:
    installed = {}
    for package in _VERSIONS_OF:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # edgelab itself, where it runs from a checkout
    return installed
