"""What a bundle says of itself: bundle.json, schema version 2, as frozen dataclasses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

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
_T = TypeVar("_T")
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


def read_manifest(root: Path) -> Bundle:
    """Read bundle.json of a folder. Raises LabError for a later schema and for any other structure."""
    manifest = root / MANIFEST
    try:
        raw = json.loads(manifest.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabError(f"{manifest}: {error.strerror}; a bundle is a folder that holds {MANIFEST}") from error
    except ValueError as error:
        raise LabError(f"{manifest}: not JSON ({error}); copy or write the bundle again") from error
    if not isinstance(raw, dict):
        raise LabError(f"{manifest}: expected an object, got {type(raw).__name__}; write the bundle again")
    schema = raw.get("schema")
    if type(schema) is not int or schema < 1:
        raise LabError(f"{manifest}: schema {schema!r} must be an integer from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise LabError(f"{manifest}: schema {schema}, this edgelab reads up to {SCHEMA}; update edgelab")
    return _parse(root, raw)


def _parse(root: Path, raw: dict[str, Any]) -> Bundle:
    where = str(root / MANIFEST)
    if raw["schema"] == 1:
        _check_keys(where, raw, {f.name for f in fields(Bundle)} - {"root", *_NEW} | {"schema"})
        raw = raw | _schema_2(InputSpec.from_dict(raw["input"]))
    _check_keys(where, raw, {f.name for f in fields(Bundle)} - {"root"} | {"schema"})
    bundle = Bundle(
        root=root,
        name=_typed(where, raw, "name", str),
        input=None if raw["input"] is None else InputSpec.from_dict(raw["input"]),
        inputs=tuple(_tensor(where, one) for one in _typed(where, raw, "inputs", list)),
        outputs=tuple(_tensor(where, one) for one in _typed(where, raw, "outputs", list)),
        class_output=None if raw["class_output"] is None else _typed(where, raw, "class_output", str),
        variants=tuple(_record(where, "variants", Variant, v) for v in _typed(where, raw, "variants", list)),
        samples=tuple(_record(where, "samples", Sample, v) for v in _typed(where, raw, "samples", list)),
        labels=tuple(_typed(where, {"labels": v}, "labels", int) for v in _typed(where, raw, "labels", list)),
        files=_typed(where, raw, "files", dict),
        versions=_typed(where, raw, "versions", dict),
        commands=_typed(where, raw, "commands", list),
        created=_typed(where, raw, "created", str),
    )
    _check_whole(where, bundle)
    return bundle


def _check_whole(where: str, bundle: Bundle) -> None:
    """What no field says by itself."""
    if not bundle.variants or not (bundle.samples or INPUTS in bundle.files):
        raise LabError(f"{where}: needs at least one variant and one sample, write the bundle again")
    if len({v.name for v in bundle.variants}) != len(bundle.variants):
        raise LabError(f"{where}: each variant name may be there once: {[v.name for v in bundle.variants]}")
    if not bundle.inputs or not bundle.outputs or (bundle.samples and bundle.input is None):
        raise LabError(
            f"{where}: needs inputs, outputs, and for image files an input; write the bundle again"
        )
    if any(None in one.shape[1:] for one in bundle.inputs):
        raise LabError(f"{where}: only the batch of an input may be free: {[str(i) for i in bundle.inputs]}")
    spec = bundle.input
    if spec and bundle.inputs[0].shape[1:] != (3, spec.size, spec.size):
        raise LabError(f"{where}: input {bundle.inputs[0]} is not of the input spec's size {spec.size}")
    named = {spec.name: spec for spec in bundle.outputs}
    if bundle.class_output is not None and (
        bundle.class_output not in named or len(named[bundle.class_output].shape) != 2
    ):
        raise LabError(f"{where}: class_output {bundle.class_output!r} is no output N x classes")
    classes = bundle.num_classes
    for label in [*bundle.labels, *(sample.label for sample in bundle.samples)]:
        if label < 0 or (classes is not None and label >= classes):
            raise LabError(
                f"{where}: a sample has label {label}, must be 0 to {(classes or 1) - 1}; "
                "write the bundle again"
            )
    used = {v.file for v in bundle.variants} | {s.file for s in bundle.samples} | {EXPECTED}
    used |= {file for v in bundle.variants for file in v.artefacts.values()}
    if unlisted := sorted(used - set(bundle.files)):
        raise LabError(f"{where}: no SHA-256 in 'files' for {unlisted}; write the bundle again")


_NEW = {"inputs", "outputs", "class_output", "labels"}
"""What schema 2 has and schema 1 had not."""


def _schema_2(spec: InputSpec) -> dict[str, Any]:
    """What schema 1 left unsaid: its networks were all trained here."""
    image, logits = image_tensors(spec)
    return {"inputs": [image.to_dict()], "outputs": [logits.to_dict()], "class_output": LOGITS, "labels": []}


def _tensor(where: str, raw: Any) -> TensorSpec:
    try:
        return TensorSpec.from_dict(raw)
    except LabError as error:
        raise LabError(f"{where}: {error}; write the bundle again") from error


def _check_keys(where: str, raw: Mapping[str, Any], names: set[str]) -> None:
    if set(raw) != names:
        raise LabError(
            f"{where}: missing keys {sorted(names - set(raw))}, unknown keys {sorted(set(raw) - names)}; "
            "write the bundle again"
        )


def _typed(where: str, raw: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = raw[key]
    if type(value) is not kind:  # not isinstance: true is no number here
        raise LabError(f"{where}: {key} must be a {kind.__name__}, got {value!r:.80}; write the bundle again")
    return value


_FIELD_TYPES: dict[str, type[Any]] = {
    "num_parameters": int,
    "label": int,
    "source": dict,
    "metrics": dict,
    "artefacts": dict,
}


def _record(where: str, key: str, kind: type[_T], raw: Any) -> _T:
    """One entry of `variants` or `samples`; a field is a string unless _FIELD_TYPES says otherwise."""
    if not isinstance(raw, dict):
        raise LabError(f"{where}: each of {key} must be an object, got {raw!r:.80}; write the bundle again")
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]  # Variant or Sample
    if kind is Variant:
        raw = {"artefacts": {}} | raw
    _check_keys(f"{where}: {key}", raw, names)
    return kind(**{n: _typed(f"{where}: {key}", raw, n, _FIELD_TYPES.get(n, str)) for n in names})
