"""What this machine is and has, what of a bundle can run here, and a remedy for each thing amiss."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from deploy.clocks import read_clocks
from deploy.device_state import DeviceState, read_state
from deploy.engine_cache import engines_folder
from deploy.finding import Finding
from deploy.interpreter import Interpreter, this_interpreter
from deploy.jetpack import Release, read_release
from deploy.machine import has_int8_dot_product, usable_cores
from deploy.manifest import Bundle
from deploy.module import Module, find_module
from deploy.nvpmodel import read_modes
from deploy.probe_bundle import VariantHere, judge_all
from deploy.probe_hardware import (
    probe_cameras,
    probe_disk,
    probe_dla,
    probe_machine,
    probe_memory,
    probe_programs,
)
from deploy.probe_software import (
    probe_cuda,
    probe_jetpack,
    probe_onnxruntime,
    probe_openvino,
    probe_python,
    probe_tensorrt,
)
from deploy.probe_state import (
    probe_clocks,
    probe_power_meter,
    probe_power_mode,
    probe_temperature,
    probe_throttling,
)

SCHEMA = 1
_WIDTH = 80
_MARK, _KEY = 9, 13  # widths of the first two columns


@dataclass(frozen=True)
class Diagnosis:
    """backends: for each, why it is not usable here; None where it is. variants: of the bundle, if given."""

    findings: tuple[Finding, ...]
    backends: Mapping[str, str | None]
    bundle: str | None
    variants: tuple[VariantHere, ...]

    @property
    def can_run(self) -> bool:
        """Some variant of the bundle; without one, some backend."""
        if self.bundle is not None:
            return any(variant.runs for variant in self.variants)
        return any(reason is None for reason in self.backends.values())

    def to_json(self) -> str:
        """An object; the keys of `findings` are stable."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "can_run": self.can_run,
                "backends": dict(self.backends),
                "bundle": self.bundle,
                "variants": [asdict(variant) | {"runs": variant.runs} for variant in self.variants],
                "findings": {
                    f.key: {"status": f.status, "text": f.text, "remedy": f.remedy, "facts": dict(f.facts)}
                    for f in self.findings
                },
            },
            indent=1,
        )

    def __str__(self) -> str:
        """80 columns: a mark, what was looked at, what was found, and after `->` the remedy."""
        lines = [line for finding in self.findings for line in _lines(finding)]
        if self.bundle is not None:
            lines += ["", f"bundle {self.bundle}:"]
            for variant in self.variants:
                lines += _entry("ok" if variant.runs else "note", variant.name, str(variant))
        return "\n".join([*lines, "", *textwrap.wrap(self._sum(), _WIDTH)])

    def _sum(self) -> str:
        counts = [(sum(f.status == s for f in self.findings), s) for s in ("PROBLEM", "note")]
        told = ", ".join(f"{n} {s.lower()}{'s' if n > 1 else ''}" for n, s in counts if n)
        end = f" {told[0].upper()}{told[1:]}." if told else ""
        if self.bundle is None:
            there = [name for name, reason in self.backends.items() if reason is None]
            return (
                f"Backends that work here: {', '.join(there)}." if there else "No backend works here."
            ) + end
        there = [variant.name for variant in self.variants if variant.runs]
        return (
            f"Can run here: {', '.join(there)}." if there else "Nothing of this bundle can run here."
        ) + end


def examine(
    bundle: Bundle | None = None, root: Path = Path("/"), python: Interpreter | None = None
) -> Diagnosis:
    """Look at everything; never raises, and ends in about the time that the slowest library takes to load.

    root: where the system's files are. python: the interpreter to speak of, this one when None.
    """
    interpreter = python or this_interpreter()
    module, release = find_module(root), read_release(root)
    state, amiss = _state(root)
    findings = [*_look(bundle, root, interpreter, module, release, state), *amiss]
    backends = _backends({finding.key: finding for finding in findings})
    usable = [name for name, reason in backends.items() if reason is None]
    words = ", ".join(usable) or "none works here"
    findings.append(
        Finding("backends", "ok", words, facts=dict(backends))
        if usable
        else Finding("backends", "PROBLEM", words, "pip install onnxruntime", dict(backends))
    )
    variants = judge_all(bundle, backends, module) if bundle else ()
    return Diagnosis(tuple(findings), backends, bundle.name if bundle else None, variants)


def _look(
    bundle: Bundle | None,
    root: Path,
    python: Interpreter,
    module: Module,
    release: Release,
    state: DeviceState,
) -> Iterator[Finding]:
    folder = engines_folder(bundle, None) if bundle else Path.cwd()
    probes: list[tuple[str, Callable[[], Finding | Iterable[Finding]]]] = [
        ("machine", lambda: probe_machine(module, usable_cores(), has_int8_dot_product(root))),
        ("jetpack", lambda: probe_jetpack(module, release)),
        ("python", lambda: probe_python(python)),
        ("cuda", lambda: probe_cuda(root, module)),
        ("tensorrt", lambda: probe_tensorrt(root, module, release, python)),
        ("onnxruntime", lambda: probe_onnxruntime(python)),
        ("openvino", lambda: probe_openvino(python)),
        ("dla", lambda: probe_dla(module, release, python)),
        ("memory", lambda: probe_memory(root, module)),
        ("disk", lambda: probe_disk(folder)),
        ("power_mode", lambda: probe_power_mode(module, read_modes(root), read_clocks(root).get("gpu"))),
        ("clocks", lambda: probe_clocks(root, module, state)),
        ("temperature", lambda: probe_temperature(state)),
        ("throttling", lambda: probe_throttling(state)),
        ("power_meter", lambda: probe_power_meter(root, module)),
        ("cameras", lambda: probe_cameras(root, module)),
        ("programs", lambda: probe_programs(root, module)),
    ]
    for key, probe in probes:
        try:
            found = probe()
            yield from [found] if isinstance(found, Finding) else list(found)
        # Of all commands this one must come to its end, on a machine broken in ways nobody thought of.
        except Exception as error:
            yield _broken(key, error)


def _state(root: Path) -> tuple[DeviceState, list[Finding]]:
    try:
        return read_state(root), []
    except Exception as error:  # as in _look
        return DeviceState({}, {}, None, ()), [_broken("state", error)]


def _broken(key: str, error: Exception) -> Finding:
    return Finding(key, "note", f"could not be looked at: {type(error).__name__}: {error}"[:300])


def _backends(findings: Mapping[str, Finding]) -> dict[str, str | None]:
    """For each backend why it is not usable; numpy carries all of them."""
    without = None if findings["numpy"].status == "ok" else "numpy is missing"
    reasons: dict[str, str | None] = {}
    for name in ("onnxruntime", "tensorrt", "openvino"):
        finding = findings[name]
        why = finding.facts.get("why") or finding.text
        reasons[name] = without or (None if finding.facts.get("usable") else str(why))
    return reasons


def _lines(finding: Finding) -> list[str]:
    lines = _entry(finding.status, finding.key.replace("_", " "), finding.text)
    return lines + (_wrap(f"-> {finding.remedy}", " " * (_MARK + _KEY)) if finding.remedy else [])


def _entry(mark: str, name: str, text: str) -> list[str]:
    return _wrap(text, f"{mark:<{_MARK}}{name:<{_KEY - 1}} ")


def _wrap(text: str, first: str) -> list[str]:
    indent = " " * (_MARK + _KEY)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False,
        break_long_words=False,
    )  # fmt: skip
