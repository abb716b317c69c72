"""bundle.json: read and checked, schema version 2 and the one before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.manifest import (
    EXPECTED,
    INPUTS,
    LOGITS,
    MANIFEST,
    SCHEMA,
    Bundle,
    Sample,
    Variant,
    image_tensors,
)
from deploy.tensor_spec import TensorSpec

_T = TypeVar("_T")


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
