"""Targets as plain text: a line a target, or one with its power modes, JetPack versions and sources."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from deploy.table import aligned
from deploy.target import JetPack, PowerMode, Precision, Target

_WIDTH = 100
_WORDS = {
    "calibration-cache": "calibration cache",
    "strongly-typed": "Q/DQ, strongly typed",
    "none": "none",
}


def format_targets(targets: Sequence[Target]) -> str:
    """Peaks are dense, of the GPU alone, in each one's default mode; DLA in dense INT8 TOPS of all cores."""
    head = ["target", "mode", "INT8 TOPS", "FP16 TFLOPS", "GB/s", "GiB", "DLA cores", "DLA TOPS", "JetPack"]
    cells = [head] + [
        [
            target.name,
            target.default_mode or "-",
            _peak(target, "int8"),
            _peak(target, "fp16"),
            _number(target.mode().memory_gb_per_s if target.power_modes else None),
            _number(target.memory_gib, ".0f"),
            str(target.dla.num_cores) if target.dla else "-",
            _number(target.dla_peak_tops("int8")) if target.dla else "-",
            ", ".join(jetpack.version for jetpack in target.jetpacks)
            or ("estimate only" if target.estimate_only else "-"),
        ]
        for target in targets
    ]
    notes = (
        "Dense, a multiply-add counts 2; the GPU alone, at the highest clock of the mode. '-': it has none, "
        "or (cpu) it is measured on the machine itself. `python -m deploy targets NAME` tells power modes "
        "and sources."
    )
    return "\n".join([*aligned(cells, "<<>>>>>><"), *textwrap.wrap(notes, _WIDTH)])


def format_target(target: Target) -> str:
    """One target with everything that its file says."""
    lines = [f"{target.name}: {target.title}"]
    if target.estimate_only:
        lines.append("For estimates alone: nothing is built for it.")
    facts = [
        f"compute capability {target.compute_capability}" if target.compute_capability else "",
        f"{target.memory_gib:g} GiB of memory" if target.memory_gib else "",
        "shared by CPU and GPU" if target.shared_memory and target.kind == "jetson" else "",
    ]
    lines += [", ".join(fact for fact in facts if fact)] if any(facts) else []
    precisions = ", ".join(target.ops_per_clock_per_sm)
    lines.append(f"precisions: {precisions}")
    if target.power_modes:
        lines += ["", *_modes(target)]
    else:
        lines.append("Its ceilings are not written anywhere: they are measured on the machine itself.")
    if target.jetpacks:
        lines += ["", *_jetpacks(target.jetpacks)]
    if target.sources:
        lines += ["", "sources:"]
    for source in target.sources:
        lines += _wrapped(f"{', '.join(source.figures)}", "  ")
        lines += _wrapped(f"{source.kind}: {source.text}", "      ")
    return "\n".join(lines)


def _modes(target: Target) -> list[str]:
    head = ["power mode", "W", "SMs", "GPU MHz", "GB/s", "INT8 TOPS", "FP16 TFLOPS", "DLA MHz", "DLA TOPS"]
    cells = [head] + [
        [
            mode.name + (" *" if mode.name == target.default_mode else ""),
            _number(mode.watts, "g"),
            str(mode.num_sms),
            _number(mode.gpu_mhz, "g"),
            _number(mode.memory_gb_per_s),
            _peak(target, "int8", mode),
            _peak(target, "fp16", mode),
            " ".join(f"{mhz:g}" for mhz in mode.dla_mhz) or "-",
            _number(target.dla_peak_tops("int8", mode.name)) if target.dla else "-",
        ]
        for mode in target.power_modes
    ]
    return [*aligned(cells, "<" + ">" * (len(head) - 1)), "* taken where no mode is named; dense peaks"]


def _jetpacks(jetpacks: Sequence[JetPack]) -> list[str]:
    head = ["JetPack", "Jetson Linux", "Python", "CUDA", "TensorRT", "INT8 on DLA"]
    cells = [head] + [
        [j.version, j.jetson_linux, j.python, j.cuda, j.tensorrt, _WORDS[j.dla]] for j in jetpacks
    ]
    lines = aligned(cells, "<" * len(head))
    for why in dict.fromkeys(jetpack.why for jetpack in jetpacks):
        versions = ", ".join(jetpack.version for jetpack in jetpacks if jetpack.why == why)
        lines += _wrapped(f"{versions}: {why}", "  ")
    for jetpack in jetpacks:
        lines += _wrapped(f"{jetpack.version} {jetpack.source_kind}: {jetpack.source}", "      ")
    return lines


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _peak(target: Target, precision: Precision, mode: PowerMode | None = None) -> str:
    if not target.supports(precision):
        return "none"
    return _number(target.peak_tops(precision, mode.name if mode else None))


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)
