"""From ONNX files to the bundle that goes to the device.

`python -m optimize.bundle BUNDLE --pyz` writes one as a single file that runs there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from data.index import Index
from deploy.bundle import Bundle, Variant, open_bundle, write_bundle, write_tensor_bundle
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from deploy.target import Target
from deploy.tensors import Tensors
from optimize.archive import write_archive
from optimize.fidelity import plain_session
from optimize.foreign import Foreign
from optimize.targets import TARGETS_NAME, describe

_VERSIONS_OF = ("edgelab", "torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy")


def build_bundle(
    path: Path,
    *,
    name: str,
    spec: InputSpec,
    variants: Sequence[Variant],
    models: Mapping[str, Path],
    answers: Mapping[str, Path],
    artefacts: Mapping[str, Mapping[str, Path]],
    targets: Sequence[Target],
    samples: Index,
    commands: Sequence[str],
) -> Bundle:
    """Write the bundle with the sample images and what each variant answers to them. Of `models` those that
    no variant names stay behind. `answers`: for a variant that ONNX Runtime cannot run, a file that it can.
    `artefacts`: for a variant what travels beside its model, by role. `targets` are told in `targets.json`.

    The answers are computed as ONNX defines the operators, without any backend's optimisations, so that every
    device is held against the same numbers. Raises LabError; a bundle that was at `path` stays then.
    """
    inputs = np.stack([preprocess(load_image(image), spec) for image in samples.paths])
    with _beside(variants, artefacts, targets) as (placed, extras):
        return write_bundle(
            path,
            name=name,
            input=spec,
            variants=placed,
            models={variant.name: models[variant.name] for variant in variants},
            samples=[(Path(p), int(label)) for p, label in zip(samples.paths, samples.labels, strict=True)],
            expected={v.name: logits_of(answers.get(v.name, models[v.name]), inputs) for v in variants},
            versions=_versions(),
            commands=commands,
            extras=extras,
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
    answers: Mapping[str, Path],
    artefacts: Mapping[str, Mapping[str, Path]],
    targets: Sequence[Target],
    samples: Tensors,
    commands: Sequence[str],
) -> Bundle:
    """As :func:`build_bundle`, of a model of anyone's, on samples that are tensors. Raises LabError, also
    where the model answers with something that is no number."""
    expected = {v.name: answers_of(answers.get(v.name, models[v.name]), samples) for v in variants}
    for output, array in expected[variants[0].name].items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LabError(
                f"the model answers with NaN or infinity in {output!r}: its samples may have masks without a "
                "single token, or values far from those that it was trained on; give others"
            )
    with _beside(variants, artefacts, targets) as (placed, extras):
        return write_tensor_bundle(
            path,
            name=name,
            input=spec,
            inputs=foreign.inputs,
            outputs=foreign.outputs,
            class_output=class_output,
            variants=placed,
            models={variant.name: models[variant.name] for variant in variants},
            samples=samples,
            expected=expected,
            versions=_versions(),
            commands=commands,
            extras=extras,
        )


@contextmanager
def _beside(
    variants: Sequence[Variant], artefacts: Mapping[str, Mapping[str, Path]], targets: Sequence[Target]
) -> Iterator[tuple[list[Variant], dict[str, Path]]]:
    """The variants with their artefacts named as in the bundle, and all files to copy by those names."""
    extras: dict[str, Path] = {}
    placed = []
    for variant in variants:
        found = artefacts.get(variant.name, {})
        names = {role: f"models/{variant.name}{''.join(file.suffixes)}" for role, file in found.items()}
        extras |= {names[role]: file for role, file in found.items()}
        placed.append(replace(variant, artefacts=names))
    with tempfile.TemporaryDirectory() as work:
        if targets:
            extras[TARGETS_NAME] = Path(work, TARGETS_NAME)
            extras[TARGETS_NAME].write_text(json.dumps(describe(targets, placed), indent=1) + "\n")
        yield placed, extras


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


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m optimize.bundle",
        description="Write a bundle as one file that runs on the device: python3 NAME.pyz verify.",
        epilog="example: python -m optimize.bundle runs/digits/bundle --pyz digits.pyz",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--pyz", type=Path, nargs="?", required=True, const=None, metavar="FILE",
        help="the file to write (default: NAME.pyz beside the folder, of the bundle's own name)",
    )  # fmt: skip
    parser.add_argument("--sign", type=Path, metavar="KEY.pem", help="with this private key of Ed25519")
    options = parser.parse_args(argv)
    try:
        out = options.pyz or options.bundle.parent / f"{_file_name(open_bundle(options.bundle).name)}.pyz"
        write_archive(options.bundle, out, options.sign)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB{', signed' if options.sign else ''}")
    return 0


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "bundle"


if __name__ == "__main__":
    sys.exit(main())
