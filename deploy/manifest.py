"""What a bundle says of itself: bundle.json, schema version 1, as frozen dataclasses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.input_spec import InputSpec

SCHEMA = 1
MANIFEST = "bundle.json"
EXPECTED = "samples/expected.npz"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_T = TypeVar("_T")


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
    input: InputSpec
    variants: tuple[Variant, ...]
    samples: tuple[Sample, ...]
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

    def expected(self) -> dict[str, NDArray[np.float32]]:
        """For each variant the logits of the samples, float32 num_samples x num_classes."""
        shape = (len(self.samples), self.input.num_classes)
        try:
            with np.load(self.root / EXPECTED, allow_pickle=False) as archive:
                arrays = {variant.name: archive[variant.name] for variant in self.variants}
        except (KeyError, ValueError, OSError) as error:
            raise LabError(f"bundle {self.root}: {EXPECTED}: {error}; write the bundle again") from error
        for name, array in arrays.items():
            check_logits(name, array, shape)
        return arrays

    def to_dict(self) -> dict[str, Any]:
        """The content of bundle.json, in plain JSON types."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "input": self.input.to_dict(),
            "variants": [asdict(variant) for variant in self.variants],
            "samples": [asdict(sample) for sample in self.samples],
            "files": self.files,
            "versions": self.versions,
            "commands": self.commands,
            "created": self.created,
        }


def check_logits(name: str, array: NDArray[np.float32], shape: tuple[int, int]) -> None:
    """Raises LabError unless the array is float32 of this shape."""
    if array.dtype != np.float32 or array.shape != shape:
        raise LabError(
            f"expected logits of {name}: {array.dtype} {array.shape}, must be float32 {shape} "
            "(one row a sample, one column a class)"
        )


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
    names = {f.name for f in fields(Bundle)} - {"root"}
    _check_keys(where, raw, names | {"schema"})
    bundle = Bundle(
        root=root,
        name=_typed(where, raw, "name", str),
        input=InputSpec.from_dict(raw["input"]),
        variants=tuple(_record(where, "variants", Variant, v) for v in _typed(where, raw, "variants", list)),
        samples=tuple(_record(where, "samples", Sample, v) for v in _typed(where, raw, "samples", list)),
        files=_typed(where, raw, "files", dict),
        versions=_typed(where, raw, "versions", dict),
        commands=_typed(where, raw, "commands", list),
        created=_typed(where, raw, "created", str),
    )
    if not bundle.variants or not bundle.samples:
        raise LabError(f"{where}: needs at least one variant and one sample, write the bundle again")
    if len({v.name for v in bundle.variants}) != len(bundle.variants):
        raise LabError(f"{where}: each variant name may be there once: {[v.name for v in bundle.variants]}")
    for sample in bundle.samples:
        if not 0 <= sample.label < bundle.input.num_classes:
            raise LabError(
                f"{where}: {sample.file} has label {sample.label}, must be 0 to "
                f"{bundle.input.num_classes - 1}; write the bundle again"
            )
    used = {v.file for v in bundle.variants} | {s.file for s in bundle.samples} | {EXPECTED}
    used |= {file for v in bundle.variants for file in v.artefacts.values()}
    if unlisted := sorted(used - set(bundle.files)):
        raise LabError(f"{where}: no SHA-256 in 'files' for {unlisted}; write the bundle again")
    return bundle


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
