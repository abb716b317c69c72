"""What a bundle says of itself: bundle.json, schema version 2, as frozen dataclasses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from deploy.tensor_spec import TensorSpec, times
from deploy.tensors import Tensors, read_tensors

SCHEMA = 2
MANIFEST = "bundle.json"
EXPECTED = "samples/expected.npz"
INPUTS = "samples/inputs.npz"
IMAGE, LOGITS = "image", "logits"
"""The input and the output of the networks that are trained here."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Answers = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Variant:
    """One model file. `backend` is the one it was made for; any backend may still try to run it."""

    name: str
    file: str
    precision: str
    backend: str
    num_parameters: int
    source: dict[str, Any]
    metrics: dict[str, Any]
    artefacts: dict[str, str] = field(default_factory=dict)
    """What a backend needs beside the model: role to file. Bundles of before there were any have none."""

    def __post_init__(self) -> None:
        if not all(isinstance(word, str) for pair in self.artefacts.items() for word in pair):
            raise LabError(
                f"variant {self.name!r}: artefacts must be names of files, got {self.artefacts!r:.80}"
            )
        if not _SAFE_NAME.fullmatch(self.name):
            raise LabError(f"variant name {self.name!r}: use letters, digits, '.', '_' and '-' only")


@dataclass(frozen=True)
class Sample:
    """One image file of the bundle; `label` is an index into the input spec's class names."""

    file: str
    label: int


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file that it lists was there and had its SHA-256 when it was opened."""

    root: Path
    name: str
    input: InputSpec | None
    """How an image file becomes the one input; None for a model that takes other things."""
    inputs: tuple[TensorSpec, ...]
    """Of every variant; the first side of each is the batch."""
    outputs: tuple[TensorSpec, ...]
    class_output: str | None
    """The output N x classes whose largest value names the class; None where there is none."""
    variants: tuple[Variant, ...]
    samples: tuple[Sample, ...]
    """Image files; none where the samples are tensors, in samples/inputs.npz."""
    labels: tuple[int, ...]
    """Class indexes of such tensors; none where they are not known."""
    files: dict[str, str]
    versions: dict[str, Any]
    commands: list[str]
    created: str

    def variant(self, name: str) -> Variant:
        """Raises LabError, with the names there are, for an unknown one."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        names = ", ".join(v.name for v in self.variants)
        raise LabError(f"bundle {self.root}: no variant {name!r}; there are: {names}")

    def path(self, variant: str) -> Path:
        """The model file of a variant."""
        return self.root / self.variant(variant).file

    def sample_paths(self) -> list[Path]:
        return [self.root / sample.file for sample in self.samples]

    def reference(self) -> Variant | None:
        """The unquantised variant that the others are compared with: the first of precision fp32."""
        return next((v for v in self.variants if v.precision == "fp32"), None)

    @property
    def num_classes(self) -> int | None:
        """None without `class_output`."""
        return next((o.shape[1] for o in self.outputs if o.name == self.class_output), None)

    def tensors(self) -> Tensors:
        """The samples as the model takes them. Raises LabError."""
        if not self.samples:
            found = read_tensors(self.root / INPUTS, self.inputs, self.num_classes)
            return Tensors(found.arrays, np.array(self.labels, np.int64) if self.labels else None)
        assert self.input is not None  # the parser has seen to that
        images = [preprocess(load_image(path), self.input) for path in self.sample_paths()]
        labels = np.array([sample.label for sample in self.samples], np.int64)
        return Tensors({self.inputs[0].name: np.stack(images)}, labels)

    def answers(self) -> dict[str, Answers]:
        """For each variant what it answers to the samples: by output, num_samples x its shape."""
        try:
            with np.load(self.root / EXPECTED, allow_pickle=False) as archive:
                found: dict[str, Answers] = {
                    variant.name: {
                        o.name: archive[_key(archive.files, variant.name, o.name)] for o in self.outputs
                    }
                    for variant in self.variants
                }
        except (KeyError, ValueError, OSError) as error:
            raise LabError(f"bundle {self.root}: {EXPECTED}: {error}; write the bundle again") from error
        count = len(self.samples) or None
        for name, answers in found.items():
            check_answers(name, answers, self.outputs, count)
        return found

    def expected(self) -> dict[str, NDArray[np.float32]]:
        """For each variant of a classifier the logits of the samples, float32 num_samples x num_classes."""
        if self.class_output is None:
            raise LabError(f"bundle {self.root}: none of its outputs names a class")
        return {name: answers[self.class_output] for name, answers in self.answers().items()}

    def to_dict(self) -> dict[str, Any]:
        """The content of bundle.json, in plain JSON types."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "input": self.input.to_dict() if self.input else None,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "class_output": self.class_output,
            "variants": [asdict(variant) for variant in self.variants],
            "samples": [asdict(sample) for sample in self.samples],
            "labels": list(self.labels),
            "files": self.files,
            "versions": self.versions,
            "commands": self.commands,
            "created": self.created,
        }


def image_tensors(spec: InputSpec) -> tuple[TensorSpec, TensorSpec]:
    """Input and output of a network that is trained here."""
    image = TensorSpec(IMAGE, "float32", (None, 3, spec.size, spec.size))
    return image, TensorSpec(LOGITS, "float32", (None, spec.num_classes))


def check_answers(name: str, answers: Answers, outputs: Sequence[TensorSpec], count: int | None) -> None:
    """Raises LabError unless each output has its type and its shape for `count` samples."""
    for spec in outputs:
        array = answers.get(spec.name)
        sides = (count, *spec.shape[1:])
        if array is None or array.dtype != np.dtype(spec.dtype) or not _fits(array.shape, sides):
            found = "not there" if array is None else f"{array.dtype} {array.shape}"
            raise LabError(
                f"expected {spec.name} of {name}: {found}, must be {spec.dtype} "
                f"{tuple(sides) if None not in sides else times(sides)} (one row a sample)"
            )


def _fits(shape: Sequence[int], sides: Sequence[int | None]) -> bool:
    return len(shape) == len(sides) and all(b in (None, a) for a, b in zip(shape, sides, strict=True))


def _key(names: Sequence[str], variant: str, output: str) -> str:
    """Schema 1 had the one output of a variant under the variant's name."""
    key = f"{variant}/{output}"
    return key if key in names else variant
