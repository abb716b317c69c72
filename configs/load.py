"""From overrides to a checked, typed config, with every mistake in one error."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from configs.mistakes import describe, location_of, missing_values
from deploy.errors import LabError

CONFIG_DIR = Path(__file__).resolve().parent
# ValueError is what Hydra raises for a group's choice that is a number.
_REFUSED = (HydraException, OmegaConfBaseException, ValueError)
T = TypeVar("T")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a full quota, a file over the limit of its size."""
_MAX_NAME = 120
"""Characters of a folder's name; file systems end at 255 bytes."""


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
    overrides = [quoted(_long(word, schema)) for word in overrides]
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


@dataclass(frozen=True)
class SweepJob(Generic[T]):
    """One point of a sweep."""

    name: str
    """Of its folder: the settings that the sweep varies, the same whatever else is in the sweep."""
    config: T
    overrides: tuple[str, ...]
    """That compose `config`, without commas and without what is Hydra's own."""


Launch = Callable[[Path, Callable[[SweepJob[T]], None]], None]
"""(folder of the sweep, work): has every job worked on, here or on other machines."""


def sweep_jobs(name: str, schema: type[T], overrides: Sequence[str]) -> list[SweepJob[T]]:
    """The product of the overrides' comma lists and ranges, the last one varying fastest, as Hydra's basic
    sweeper has it. Raises LabError that lists the mistakes of the first job that has any."""
    try:
        parsed = OverridesParser.create().parse_overrides([quoted(word) for word in overrides])
        # As in Hydra, a later override takes the place of an earlier one of the same key.
        choices = {o.get_key_element(): _choices(o) for o in parsed if not _is_hydras(o)}
    except HydraException as error:
        raise _refusal([_first_paragraph(error)]) from error
    if any(o.key_or_group == "hydra/sweeper" for o in parsed):
        raise LabError(
            "hydra/sweeper: only Hydra's own sweeper, a product of lists, is known here: leave it out"
        )
    varied = {key for key, values in choices.items() if len(values) > 1}
    own = [str(o.input_line) for o in parsed if _is_hydras(o)]
    jobs = []
    for point in itertools.product(*choices.values()):
        words = [o for key, o in zip(choices, point, strict=True) if key in varied]
        jobs.append(SweepJob(_folder_name(words), load(name, schema, [*point, *own]), point))
    repeated = [job.name for job in jobs if [other.name for other in jobs].count(job.name) > 1]
    if repeated:
        raise LabError(f"the sweep names the job {repeated[0]} more than once: name it once")
    return jobs


def override(key: str, value: str) -> str:
    """KEY=VALUE, quoted for Hydra where it must be."""
    if re.fullmatch(r"[\w./-]+", value, re.ASCII):
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return f'{key}="{escaped}"'


def quoted(word: str) -> str:
    """An override whose value has a `=`, as the folders of a sweep have it, in the quotes that Hydra's
    grammar asks for; what is in quotes, brackets or a list stays."""
    key, _, value = word.partition("=")
    return override(key, value) if "=" in value and not re.search(r"[\"'(){}\[\],$]", value) else word


def _long(word: str, schema: type[Any]) -> str:
    """`section=value` to `section.key=value` by the schema's SHORT: Hydra would put the value in the place of
    the whole section."""
    section, equals, value = word.partition("=")
    short: Mapping[str, str] = getattr(schema, "SHORT", {})
    return word if section not in short or value.startswith("{") else f"{short[section]}{equals}{value}"


def run_command(
    name: str,
    schema: type[T],
    command: Callable[[T, Sequence[str]], None],
    sweep: Callable[[list[SweepJob[T]], Launch[T]], None] | None = None,
) -> None:
    """Run `command` with the config `configs/NAME.yaml` as the command line changes it, and with those
    changes, under Hydra. `sweep` is called instead where there is one and `--multirun` is given.

    A mistake is one clear message and exit code 2, not a traceback. Under a launcher every rank composes the
    same config, so only rank 0 speaks.
    """
    mistakes: list[LabError] = []

    def told(work: Callable[[], None]) -> None:
        # Kept from Hydra, which would print a preamble of its own.
        try:
            work()
        except LabError as error:
            mistakes.append(error)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            mistakes.append(LabError(f"{error}: make room on that disk, then give the same command again"))

    def under_hydra(job: Callable[[DictConfig], None]) -> None:
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=name)(job)()

    def job(config: DictConfig) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # a defect of ours shows its whole traceback
        told(lambda: command(parse(config, schema), list(HydraConfig.get().overrides.task)))

    sys.argv[1:] = [word if word.startswith("-") else quoted(_long(word, schema)) for word in sys.argv[1:]]
    given = get_args_parser().parse_args()
    shows = given.help or given.hydra_help or given.cfg or given.info

    def run() -> None:
        if not (shows or given.multirun):
            load(name, schema, given.overrides)
        under_hydra(job)

    def run_sweep() -> None:
        jobs = sweep_jobs(name, schema, given.overrides)

        def launch(folder: Path, work: Callable[[SweepJob[T]], None]) -> None:
            place = sys.argv.index(given.overrides[-1]) + 1 if given.overrides else len(sys.argv)
            sys.argv.insert(place, override("hydra.sweep.dir", str(folder)))
            under_hydra(lambda config: work(jobs[HydraConfig.get().job.num]))

        assert sweep is not None
        sweep(jobs, launch)

    told(run if shows or sweep is None or not given.multirun else run_sweep)
    if mistakes:
        if os.environ.get("RANK", os.environ.get("HOROVOD_RANK", "0")) == "0":
            print(*(f"error: {mistake}" for mistake in mistakes), sep="\n", file=sys.stderr)
        sys.exit(2)


def _is_hydras(given: Override) -> bool:
    return given.key_or_group.split("/")[0].split(".")[0] == "hydra"


def _choices(given: Override) -> list[str]:
    if not given.is_sweep_override():
        return [str(given.input_line)]
    if not given.is_discrete_sweep():
        raise HydraException(f"{given.input_line}: not a list of values; give them with commas")
    return [f"{given.get_key_element()}={value}" for value in given.sweep_string_iterator()]


def _folder_name(words: Sequence[str]) -> str:
    """Readable where it can be, and always one of its own."""
    exact = ",".join(words) or "job"
    name = re.sub(r"[^\w.,=+-]", "_", exact)
    if name == exact and len(name) <= _MAX_NAME:
        return name
    return f"{name[:_MAX_NAME]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


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
    if re.search("input '[^']*='", text):
        return "a value with = in a list stands in quotes of its own: 'key=[\"runs/seed=0/checkpoint.pt\"]'"
    lines = [line.strip() for line in text.splitlines() if line.strip() and "full_key" not in line]
    return " ".join(line for line in lines if not line.startswith("object_type="))


def _validate(config: DictConfig, schema: type[T]) -> tuple[T | None, list[str]]:
    try:
        raw = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        return None, [f"{error.full_key}: {_first_paragraph(error)}"]
    missing = missing_values(raw)
    try:
        # By way of JSON, whose strict mode takes a list for a list and 1 for a float, but not "1" for a 1.
        value = TypeAdapter(schema).validate_json(json.dumps(raw))
    except ValidationError as error:
        unknown = {location_of(e) for e in error.errors() if e["type"] == "unexpected_keyword_argument"}
        problems = [describe(item, missing, raw, unknown) for item in error.errors()]
        named = " ".join(problems)
        return None, [*problems, *(m for key, m in missing.items() if key not in named)]
    return (value, []) if not missing else (None, list(missing.values()))


def _refusal(problems: Sequence[str]) -> LabError:
    unique = list(dict.fromkeys(problems))
    title = "the config has a mistake" if len(unique) == 1 else f"the config has {len(unique)} mistakes"
    return LabError(f"{title}:\n" + "\n".join(f"  - {problem}" for problem in unique))
