"""Reading `configs/target/NAME.yaml`: every mistake of a file in one error.

The file names the JetPack versions; what is in each stands once in `configs/jetpacks.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deploy.errors import LabError
from deploy.target import JETPACKS, JetPack, Target

_FIGURES = (
    "compute_capability", "memory_gib", "l2_cache_mib", "ops_per_clock_per_sm.*", "power_modes.*", "dla.*",
    "jetpacks", "advertised.*",
)  # fmt: skip
"""Dotted keys whose values somebody has to vouch for."""
_NO_FIGURES = ("*.name", "*.mode")
NO_DLA = "This module has no DLA cores."


def read_target(path: Path) -> Target:
    """The name is the file's. Raises LabError that lists every mistake, and where PyYAML is missing."""
    raw = _read_yaml(path)
    mistakes: list[str] = []
    filled = {"name": path.stem, **raw}
    if "name" in raw:
        mistakes.append("name: unknown key; the file's name is the target's")
    if isinstance(raw.get("jetpacks"), list):
        filled["jetpacks"] = _jetpacks(raw["jetpacks"], raw.get("dla") is not None, mistakes)
    target = _value(Target, filled, "", mistakes)
    if not mistakes:
        mistakes = [*_impossible(target), *_without_source(target, raw)]
    if mistakes:
        raise _refusal(path, mistakes)
    assert isinstance(target, Target)
    return target


def read_jetpacks() -> dict[str, JetPack]:
    """By version. Raises LabError that lists every mistake."""
    mistakes: list[str] = []
    raw = _read_yaml(JETPACKS)
    found = {
        version: _value(JetPack, {"version": version, **_mapping(entry)}, str(version), mistakes)
        for version, entry in raw.items()
    }
    if mistakes:
        raise _refusal(JETPACKS, mistakes)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise LabError("targets are YAML files: pip install pyyaml") from error
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LabError(f"{path}: cannot be read as YAML ({error}); mend or restore the file") from error
    if not isinstance(raw, dict):
        raise LabError(f"{path}: expected a mapping of keys, got {type(raw).__name__}")
    return raw


def _mapping(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _jetpacks(versions: list[Any], has_dla: bool, mistakes: list[str]) -> list[dict[str, Any]]:
    """The releases as plain dicts; on a module without DLA none of them has a route to it."""
    known = read_jetpacks()
    for version in versions:
        if version not in known:
            mistakes.append(f"jetpacks: no {version!r} in {JETPACKS.name}; there are: {', '.join(known)}")
    found = [asdict(known[version]) for version in versions if version in known]
    return found if has_dla else [one | {"dla": "none", "why": NO_DLA} for one in found]


def figures_of(raw: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf; an entry of a list goes by its name or mode, or its number."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            yield from figures_of(value, f"{prefix}{key}.")
    elif isinstance(raw, list) and any(isinstance(item, dict) for item in raw):
        for number, value in enumerate(raw):
            entry = value.get("name", value.get("mode", number))
            yield from figures_of(value, f"{prefix}{entry}.")
    else:
        yield prefix[:-1], raw


def _value(hint: Any, raw: Any, where: str, mistakes: list[str]) -> Any:
    """`raw` as the type of a field; what does not fit is told in `mistakes`, and None comes back."""
    origin, inner = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _record(hint, raw, where, mistakes)
    if origin is Literal:
        if raw in inner and type(raw) is str:
            return raw
        return _refuse(where, raw, f"one of {', '.join(inner)}", mistakes)
    if origin is tuple:
        if not isinstance(raw, list):
            return _refuse(where, raw, "a list", mistakes)
        return tuple(_value(inner[0], item, f"{where}.{n}", mistakes) for n, item in enumerate(raw))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(raw, dict):
            return _refuse(where, raw, "a mapping", mistakes)
        for key in raw:
            _value(inner[0], key, where, mistakes)
        return {key: _value(inner[1], item, f"{where}.{key}", mistakes) for key, item in raw.items()}
    if type(None) in inner:
        return None if raw is None else _value(Union[inner[:-1]], raw, where, mistakes)  # noqa: UP007  # no `|` of a tuple
    if hint is float and type(raw) in (int, float) and math.isfinite(raw):
        return float(raw)
    if hint is not float and type(raw) is hint:  # not isinstance: true is no number here
        return raw
    names = {float: "a number", int: "a whole number", str: "text in quotes", bool: "true or false"}
    return _refuse(where, raw, names[hint], mistakes)


def _record(kind: Any, raw: Any, where: str, mistakes: list[str]) -> Any:
    before = len(mistakes)
    if not isinstance(raw, dict):
        return _refuse(where, raw, "a mapping", mistakes)
    dot = f"{where}." if where else ""
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    mistakes += [f"{dot}{name}: missing" for name in names if name not in raw]
    mistakes += [f"{dot}{key}: unknown key; known are {', '.join(names)}" for key in raw if key not in names]
    values = {n: _value(hints[n], raw[n], f"{dot}{n}", mistakes) for n in names if n in raw}
    return kind(**values) if len(mistakes) == before else None


def _refusal(path: Path, mistakes: list[str]) -> LabError:
    return LabError(f"{path}: mistakes in it, {len(mistakes)}:\n" + "\n".join(f"  {m}" for m in mistakes))


def _refuse(where: str, raw: Any, expected: str, mistakes: list[str]) -> None:
    mistakes.append(f"{where}: must be {expected}, got {raw!r:.60}")


def _impossible(target: Target) -> Iterator[str]:
    for key, value in _numbers(target):
        if value <= 0:
            yield f"{key}: must be more than 0, got {value}"
    modes = [mode.name.lower() for mode in target.power_modes]
    if len(set(modes)) != len(modes):
        yield "power_modes: each name may be there once, in upper or lower case"
    if (target.default_mode is None) != (not modes):
        yield f"default_mode: must name a power mode where there are any, got {target.default_mode!r}"
    wanted = [("default_mode", target.default_mode)]
    wanted += [(f"advertised.{n}.mode", one.mode) for n, one in enumerate(target.advertised)]
    for key, name in wanted:
        if name is not None and name.lower() not in modes:
            yield f"{key}: no power mode {name!r}"
    num_cores = target.dla.num_cores if target.dla else 0
    for number, mode in enumerate(target.power_modes):
        if len(mode.dla_mhz) != num_cores:
            yield f"power_modes.{number}.dla_mhz: {len(mode.dla_mhz)} clocks for {num_cores} DLA cores"
    if not target.ops_per_clock_per_sm:
        yield "ops_per_clock_per_sm: needs one precision at least"
    for number, one in enumerate(target.advertised):
        if one.precision not in target.ops_per_clock_per_sm:
            yield f"advertised.{number}.precision: ops_per_clock_per_sm has no {one.precision}"
    if target.jetpacks and target.kind != "jetson":
        yield f"jetpacks: only a jetson has them, this is a {target.kind}"


def _numbers(target: Target) -> Iterator[tuple[str, float]]:
    for key, value in figures_of(_lists(asdict(target))):
        for one in value if isinstance(value, list) else [value]:
            if type(one) in (int, float):
                yield key, one


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _without_source(target: Target, raw: Mapping[str, Any]) -> Iterator[str]:
    """Figures that no source names, and sources that name no figure."""
    wanted = [
        key
        for key, value in figures_of(dict(raw))
        if value not in (None, [])
        and any(fnmatchcase(key, pattern) for pattern in _FIGURES)
        and not any(fnmatchcase(key, pattern) for pattern in _NO_FIGURES)
    ]
    patterns = [pattern for source in target.sources for pattern in source.figures]
    for key in wanted:
        if not any(fnmatchcase(key, pattern) for pattern in patterns):
            yield f"{key}: no source names it"
    for pattern in patterns:
        if not any(fnmatchcase(key, pattern) for key in wanted):
            yield f"sources: {pattern} names no figure of this file"
