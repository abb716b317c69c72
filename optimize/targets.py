"""Which file of a bundle goes where: for each target and each JetPack of it, in data and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from deploy.bundle import Variant
from deploy.target import DLA_BACKEND, JetPack, Target

TARGETS_NAME = "targets.json"


def need_dla_files(targets: Sequence[Target]) -> bool:
    """Whether one of them has a DLA that takes INT8 by a calibration cache under some JetPack."""
    return any(jetpack.dla == "calibration-cache" for target in targets for jetpack in target.jetpacks)


def describe(targets: Sequence[Target], variants: Sequence[Variant]) -> dict[str, Any]:
    """The content of targets.json: for each target the variants for its GPU (of `cpu`: for it), and for each
    of its JetPacks those for DLA, with a sentence that says why there are such or none."""
    return {
        "targets": [
            {
                "name": target.name,
                "title": target.title,
                "power_mode": target.default_mode,
                "variants": _names(variants, "onnxruntime" if target.kind == "cpu" else "tensorrt"),
                "jetpacks": [
                    {
                        "version": jetpack.version,
                        "tensorrt": jetpack.tensorrt,
                        "dla": _on_dla(jetpack, variants),
                        "why": jetpack.why,
                    }
                    for jetpack in target.jetpacks
                ],
            }
            for target in targets
        ]
    }


def tell(targets: Sequence[Target], variants: Sequence[Variant]) -> list[str]:
    """`describe` in words, JetPacks of which the same is to be said in one paragraph."""
    lines = []
    for target in describe(targets, variants)["targets"]:
        lines.append(f"target {target['name']}: {', '.join(target['variants']) or 'no variant'}")
        by_word: dict[str, list[str]] = {}
        for jetpack in target["jetpacks"]:
            on_dla = ", ".join(jetpack["dla"]) or "none"
            by_word.setdefault(f"for DLA {on_dla}. {jetpack['why']}", []).append(jetpack["version"])
        for word, versions in by_word.items():
            text = f"JetPack {', '.join(versions)}: {word}"
            lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="    ")
    return lines


def _on_dla(jetpack: JetPack, variants: Sequence[Variant]) -> list[str]:
    if jetpack.dla == "calibration-cache":
        return _names(variants, DLA_BACKEND)
    return _names(variants, "tensorrt", "int8") if jetpack.dla == "strongly-typed" else []


def _names(variants: Sequence[Variant], backend: str, precision: str | None = None) -> list[str]:
    return [v.name for v in variants if v.backend == backend and precision in (None, v.precision)]
