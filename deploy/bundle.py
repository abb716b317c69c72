"""The bundle: the folder that crosses from the training world to the device.

    bundle.json               what is inside (`deploy/manifest.py`)
    models/<variant>.onnx     and beside it what a backend needs with it, such as a calibration cache
    targets.json              what it is for and which file goes where; only where targets were named
    samples/NNN.<ext>         a few image files, or
    samples/inputs.npz        for each input num_samples x its shape, where the samples are no image files
    samples/expected.npz      for each variant and output, as VARIANT/OUTPUT, the answers to those samples

Opening checks every byte; writing never loses a good bundle to a bad one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.manifest import (
    EXPECTED,
    INPUTS,
    LOGITS,
    MANIFEST,
    Answers,
    Bundle,
    Sample,
    Variant,
    check_answers,
    image_tensors,
)
from deploy.manifest_file import read_manifest
from deploy.tensor_spec import TensorSpec
from deploy.tensors import Tensors

__all__ = [
    "Bundle", "Sample", "Variant", "file_sha256", "open_bundle", "write_bundle", "write_tensor_bundle",
]  # fmt: skip


def open_bundle(path: Path | str) -> Bundle:
    """Open and check a bundle folder: schema, structure, and the SHA-256 of every file that it lists.

    Raises LabError when anything is missing, altered, of a later schema, or lies outside the folder.
    """
    root = Path(path)
    bundle = read_manifest(root)
    for name, digest in bundle.files.items():
        _check_file(root, name, digest)
    return bundle


def write_bundle(
    path: Path | str,
    *,
    name: str,
    input: InputSpec,
    variants: Sequence[Variant],
    models: Mapping[str, Path],
    samples: Sequence[tuple[Path, int]],
    expected: Mapping[str, NDArray[np.float32]],
    versions: Mapping[str, Any],
    commands: Sequence[str],
    extras: Mapping[str, Path] | None = None,
) -> Bundle:
    """Write a bundle folder and open it.

    models: for each variant's name the ONNX file to copy; a variant's own `file` is set here.
    samples: image files to copy, with their class indexes.
    expected: for each variant's name float32 num_samples x num_classes.
    extras: more files to copy, by their names in the bundle, which a variant's `artefacts` may be.

    It grows in a temporary folder beside `path` and is swapped in by rename once it is whole and on disk,
    so a bundle that was there stays untouched by any failure. Raises LabError, a full disk included.
    """
    image, logits = image_tensors(input)
    copied = [
        Sample(f"samples/{i:03d}{source.suffix.lower()}", label) for i, (source, label) in enumerate(samples)
    ]
    draft = Bundle(
        root=Path(path).absolute(),
        name=name,
        input=input,
        inputs=(image,),
        outputs=(logits,),
        class_output=LOGITS,
        variants=tuple(variants),
        samples=tuple(copied),
        labels=(),
        files={},
        versions=dict(versions),
        commands=list(commands),
        created="",
    )
    answers = {variant: {LOGITS: array} for variant, array in expected.items()}
    files = {sample.file: source for sample, (source, _) in zip(copied, samples, strict=True)}
    return _write(draft, models, answers, files, None, extras or {})


def write_tensor_bundle(
    path: Path | str,
    *,
    name: str,
    input: InputSpec | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    class_output: str | None,
    variants: Sequence[Variant],
    models: Mapping[str, Path],
    samples: Tensors,
    expected: Mapping[str, Answers],
    versions: Mapping[str, Any],
    commands: Sequence[str],
    extras: Mapping[str, Path] | None = None,
) -> Bundle:
    """As :func:`write_bundle`, of a network whose samples are tensors.

    input: how an image file becomes its one input, for a classifier of images; else None.
    class_output: the output N x classes whose largest value names the class; None where there is none.
    expected: for each variant's name and each output num_samples x its shape.
    """
    draft = Bundle(
        root=Path(path).absolute(),
        name=name,
        input=input,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        class_output=class_output,
        variants=tuple(variants),
        samples=(),
        labels=() if samples.labels is None else tuple(samples.labels.tolist()),
        files={},
        versions=dict(versions),
        commands=list(commands),
        created="",
    )
    return _write(draft, models, expected, {}, samples, extras or {})


def _write(
    draft: Bundle,
    models: Mapping[str, Path],
    expected: Mapping[str, Answers],
    images: Mapping[str, Path],
    tensors: Tensors | None,
    extras: Mapping[str, Path],
) -> Bundle:
    """`images`, `extras`: files to copy, by their names there; `tensors`: samples that are no files."""
    target, variants = draft.root, draft.variants
    _check(target, variants, models, [*models.values(), *images.values(), *extras.values()], expected)
    for variant_name, answers in expected.items():
        check_answers(variant_name, answers, draft.outputs, len(images) if tensors is None else len(tensors))
    work = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.new-", dir=target.parent))
        work.chmod(0o755)  # mkdtemp makes it private; a bundle is for sharing
        root = work / target.name
        (root / "models").mkdir(parents=True)
        (root / "samples").mkdir()
        placed = tuple(replace(v, file=f"models/{v.name}.onnx") for v in variants)
        for variant in placed:
            shutil.copyfile(models[variant.name], root / variant.file)
        for file, source in [*images.items(), *extras.items()]:
            shutil.copyfile(source, root / file)
        if tensors is not None:
            _save(root / INPUTS, tensors.arrays)
        by_key = {
            f"{v.name}/{output.name}": expected[v.name][output.name]
            for v in placed
            for output in draft.outputs
        }
        _save(root / EXPECTED, by_key)
        names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        bundle = replace(
            draft,
            variants=placed,
            files={n: file_sha256(root / n) for n in names},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        text = json.dumps(bundle.to_dict(), indent=1, sort_keys=True, allow_nan=False)
        (root / MANIFEST).write_text(text + "\n", encoding="utf-8")
        _sync(root)
        open_bundle(root)
        _swap(root, target, aside=work / "previous")
    except OSError as error:
        free = shutil.disk_usage(_existing(target)).free >> 20
        raise LabError(
            f"bundle {target}: cannot be written ({error.strerror or error}); {free} MiB are free there; "
            "free some space or choose another folder"
        ) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return open_bundle(target)


def _check(
    target: Path,
    variants: Sequence[Variant],
    models: Mapping[str, Path],
    sources: Sequence[Path],
    expected: Mapping[str, Answers],
) -> None:
    names = [variant.name for variant in variants]
    if sorted(models) != sorted(names) or sorted(expected) != sorted(names):
        raise LabError(
            f"bundle {target}: variants {sorted(names)}, models {sorted(models)} and expected "
            f"{sorted(expected)} must have the same names"
        )
    for source in sources:
        if not Path(source).is_file():
            raise LabError(f"bundle {target}: {source} is not there; give the path of an existing file")
    if target.exists() and not (target / MANIFEST).is_file() and (target.is_file() or any(target.iterdir())):
        raise LabError(f"{target}: is there and is no bundle, so it is not replaced; choose another path")


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """As numpy.savez, which keeps the key `file` for itself and would not take an input of that name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)


def _sync(root: Path) -> None:
    """Everything on disk before the rename: else a power cut could keep the name and lose the content."""
    for path in [*root.rglob("*"), root]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(new: Path, target: Path, aside: Path) -> None:
    """Two renames: POSIX has no exchange of folders. The first is taken back if the second is not reached."""
    try:
        if target.exists():
            target.rename(aside)
        new.rename(target)
    except BaseException:  # Ctrl-C as well: `aside` is about to be deleted
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _check_file(root: Path, name: str, digest: Any) -> None:
    pure = PurePosixPath(name)
    inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name and ":" not in name
    if not inside or not (root / name).resolve().is_relative_to(root.resolve()):
        raise LabError(f"bundle {root}: file {name!r} lies outside its folder; do not use this bundle")
    try:
        found = file_sha256(root / name)
    except OSError as error:
        raise LabError(f"bundle {root}: {name}: {error.strerror}; copy the bundle again") from error
    if found != digest:
        raise LabError(
            f"bundle {root}: {name} was altered: its SHA-256 should begin {str(digest)[:12]}, "
            f"it begins {found[:12]}; copy or write the bundle again"
        )
