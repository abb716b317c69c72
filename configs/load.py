"""From overrides to a checked, typed config, with every mistake in one error."""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from deploy.errors import LabError

CONFIG_DIR = Path(__file__).resolve().parent
# ValueError is what Hydra raises for a group's choice that is a number.
_REFUSED = (HydraException, OmegaConfBaseException, ValueError)
T = TypeVar("T")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a full quota, a file over the limit of its size."""


def parse(config: DictConfig, schema: type[T]) -> T:
    """The composed config as a plain dataclass. Raises LabError that lists every mistake."""
    value, problems = _validate(config, schema)
    if value is None:
        raise _refusal(problems)
    return value


def load(name: str, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Compose `configs/NAME.yaml` with the overrides and check it. Raises LabError that lists every mistake.

    Hydra stops at the first override that it cannot apply. Only then is each tried by itself, so that one
    message can name all of them.
    """
    problems: list[str] = []
    config: DictConfig | None
    try:
        config = _compose(name, overrides)
    except _REFUSED:
        config, problems = _compose_what_can_be(name, overrides)
    value, more = _validate(config, schema) if config is not None else (None, [])
    if value is None or problems:
        raise _refusal([*problems, *more])
    return value


def as_dict(config: Any) -> dict[str, Any]:
    """A config dataclass as plain JSON types; :func:`from_dict` is the inverse."""
    result: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return result


def to_yaml(config: Any) -> str:
    """A config dataclass as YAML, for people."""
    return OmegaConf.to_yaml(OmegaConf.create(as_dict(config)))


def from_yaml(text: str) -> dict[str, Any]:
    """What :func:`to_yaml` wrote, unchecked: for showing, not for running."""
    raw = OmegaConf.to_container(OmegaConf.create(text))
    return cast(dict[str, Any], raw)


def from_dict(raw: Any, schema: type[T]) -> T:
    """A config that was saved by :func:`as_dict`. Raises LabError that lists every mistake."""
    value, problems = _validate(OmegaConf.create(raw), schema)
    if value is None:
        raise _refusal(problems)
    return value


def run_command(name: str, schema: type[T], command: Callable[[T], None]) -> None:
    """Run `command` with the config `configs/NAME.yaml` as the command line changes it, under Hydra.

    A mistake is one clear message and exit code 2, not a traceback. Under a launcher every rank composes the
    same config, so only rank 0 speaks.
    """
    mistakes: list[LabError] = []

    def job(config: DictConfig) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # a defect of ours shows its whole traceback
        # Kept from Hydra, which would print a preamble of its own.
        try:
            command(parse(config, schema))
        except LabError as error:
            mistakes.append(error)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            mistakes.append(LabError(f"{error}: make room on that disk, then give the same command again"))

    given = get_args_parser().parse_args()
    try:
        if not (given.help or given.hydra_help or given.cfg or given.info or given.multirun):
            load(name, schema, given.overrides)
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(job)()
    except LabError as error:
        mistakes.append(error)
    if mistakes:
        if os.environ.get("RANK", "0") == "0":
            print(*(f"error: {mistake}" for mistake in mistakes), sep="\n", file=sys.stderr)
        sys.exit(2)


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def _compose_what_can_be(name: str, overrides: Sequence[str]) -> tuple[DictConfig | None, list[str]]:
    """Apply the overrides one after another, choices of groups first; collect what is refused."""
    problems: list[str] = []
    accepted: list[str] = []
    config: DictConfig | None = None
    for override in sorted(overrides, key=lambda o: "." in o.split("=", 1)[0]):
        try:
            config = _compose(name, [*accepted, override])
            accepted.append(override)
        except _REFUSED as error:
            # An unknown key is forced in: the schema then refuses it and names the keys that there are.
            try:
                config = _compose(name, [*accepted, f"++{override}"])
                accepted.append(f"++{override}")
            except _REFUSED:
                problems.append(f"{override}: {_first_paragraph(error)}")
    if config is None:
        try:
            config = _compose(name, accepted)
        except _REFUSED as error:
            problems.append(_first_paragraph(error))
    return config, problems


def _first_paragraph(error: Exception) -> str:
    text = str(error)
    cause = error.__cause__
    if cause is not None and str(cause) not in text:
        text = f"{text}: {cause}"
    # Hydra's own advice is to force the key in with a plus sign, which nothing here would read.
    text = re.sub(r"\n?To append to your config use \+\S*", "", text)
    text = text.split("Config search path:")[0].replace("\tbase\n", "")
    lines = [line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line]
    return " ".join(line for line in lines if not line.startswith("object_type="))


def _validate(config: DictConfig, schema: type[T]) -> tuple[T | None, list[str]]:
    try:
        raw = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return None, [f"{error.full_key}: {_first_paragraph(error)}"]
    missing = _missing(raw)
    try:
        # By way of JSON, whose strict mode takes a list for a list and 1 for a float, but not "1" for a 1.
        value = TypeAdapter(schema).validate_json(json.dumps(raw))
    except ValidationError as error:
        unknown = {_location(e) for e in error.errors() if e["type"] == "unexpected_keyword_argument"}
        problems = [_say(item, missing, raw, unknown) for item in error.errors()]
        named = " ".join(problems)
        return None, [*problems, *(m for key, m in missing.items() if key not in named)]
    return (value, []) if not missing else (None, list(missing.values()))


def _missing(raw: Any, prefix: str = "") -> dict[str, str]:
    """Required values (`???`) that nobody gave."""
    found: dict[str, str] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            found |= _missing(value, f"{prefix}{key}.")
        elif value == "???":
            found[prefix + key] = f"{prefix}{key} is required: give {prefix}{key}=..."
    return found


def _location(item: Any) -> tuple[str | int, ...]:
    # A union of configs adds the chosen variant to the path: data.digits.input.size is data.input.size.
    head, *rest = item["loc"] or ("",)
    if head in ("data", "optim", "sampling") and rest and isinstance(rest[0], str):
        rest = rest[1:]
    return (head, *rest)


def _instead(unknown: set[tuple[str | int, ...]], location: tuple[str | int, ...], raw: Any) -> str:
    *path, wrong = location
    for part in path:
        raw = raw[part]
    known = [key for key in raw if (*path, key) not in unknown]
    close = difflib.get_close_matches(str(wrong), known, 1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"


def _say(item: Any, missing: dict[str, str], raw: Any, unknown: set[tuple[str | int, ...]]) -> str:
    location = _location(item)
    key = ".".join(str(part) for part in location)
    if key in missing:
        return missing[key]
    if location in unknown:
        return f"{key}: unknown key; {_instead(unknown, location, raw)}"
    context = item.get("ctx", {})
    messages = {
        "missing": "missing; a value for it belongs into the YAML file",
        "missing_argument": "missing; a value for it belongs into the YAML file",
        "union_tag_not_found": "has no name; choose one of its variants on the command line",
        "union_tag_invalid": f"unknown name, choose from {context.get('expected_tags')}",
        "value_error": str(context.get("error", "")),
    }
    given = item.get("input")
    shown = f" (got {given!r})" if isinstance(given, (str, int, float, bool, list)) else ""
    text = messages.get(item["type"], item["msg"])
    return f"{key}: {text}{shown}" if key else f"{text}{shown}"


def _refusal(problems: Sequence[str]) -> LabError:
    unique = list(dict.fromkeys(problems))
    title = "the config has a mistake" if len(unique) == 1 else f"the config has {len(unique)} mistakes"
    return LabError(f"{title}:\n" + "\n".join(f"  - {problem}" for problem in unique))
