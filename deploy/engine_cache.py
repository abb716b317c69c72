"""Engine files and their records: what an engine was built from, with and for, and why it no longer fits.

    <bundle>.engines/<variant>.<target>.engine        the plan
    <bundle>.engines/<variant>.<target>.engine.json   its record
    <bundle>.engines/<library>.<target>.timing        kernel timings of earlier builds

Beside the bundle and not inside, because an engine belongs to one machine and a bundle to all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deploy.bundle import file_sha256
from deploy.engine_layers import Precision
from deploy.errors import LabError
from deploy.manifest import Bundle

SCHEMA = 1
FOLDER_VARIABLE = "EDGELAB_ENGINES"


@dataclass(frozen=True)
class Key:
    """What an engine depends on. flags: the build's options in plain JSON types."""

    onnx_sha256: str
    tensorrt: str
    device: str
    flags: dict[str, Any]

    def differences(self, now: Key) -> list[str]:
        """What has changed since, each as before -> now."""
        found = []
        if self.tensorrt != now.tensorrt:
            flavour = self.tensorrt.partition(" ")[0]
            found.append(f"{self.tensorrt} -> {now.tensorrt.removeprefix(f'{flavour} ')}")
        if self.device != now.device:
            found.append(f"{self.device} -> {now.device}")
        if self.onnx_sha256 != now.onnx_sha256:
            found.append(f"the ONNX file changed (SHA-256 {self.onnx_sha256[:12]} -> {now.onnx_sha256[:12]})")
        for name in sorted({*self.flags, *now.flags}):
            before, after = self.flags.get(name), now.flags.get(name)
            if before != after:
                found.append(f"{name} {before} -> {after}")
        return found


@dataclass(frozen=True)
class Record:
    """What stands beside an engine. precision: None where it was built for another machine's GPU.

    batch: least, most common, largest.
    """

    variant: str
    key: Key
    engine_sha256: str
    engine_bytes: int
    batch: tuple[int, int, int]
    build_s: float
    precision: Precision | None
    created: str

    def account(self) -> list[str]:
        """What the layers compute in, as lines for a person."""
        if self.precision is None:
            return [
                "  the layers' precision was not read back: only the GPU that an engine is for can open it "
                "(before there is one: python -m optimize.placement BUNDLE)"
            ]
        lines = [f"  {self.precision}"]
        if self.precision.not_int8:
            named = ", ".join(f"{node} ({found})" for node, found in self.precision.not_int8.items())
            lines.append(f"  WARNING: not in INT8, though the file asks for it: {named}")
        return lines


def engines_folder(bundle: Bundle, cache: Path | None) -> Path:
    """Where the engines of a bundle are: in a folder of its own in `cache`, else in the folder that
    EDGELAB_ENGINES names, else beside the bundle."""
    named = cache or os.environ.get(FOLDER_VARIABLE)
    root = bundle.root.resolve()
    return Path(named) / slug(bundle.name) if named else root.with_name(f"{root.name}.engines")


def slug(text: str) -> str:
    """Letters, digits, dots and dashes: a part of a file's name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


def record_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def read_record(engine: Path) -> Record:
    """Raises LabError where the engine or its record is missing, or the record is none of ours."""
    path = record_path(engine)
    if not engine.is_file():
        raise LabError(f"{engine}: no such engine; build it with `python -m deploy build`")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        schema = raw.pop("schema")
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r}, this edgelab reads {SCHEMA}")
        if missing := sorted({f.name for f in fields(Record)} ^ set(raw)):
            raise ValueError(f"keys {missing}")
        raw["key"] = Key(**raw["key"])
        raw["batch"] = tuple(int(size) for size in raw["batch"])
        raw["precision"] = None if raw["precision"] is None else Precision(**raw["precision"])
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(
            f"{path}: no record of an engine ({error}), and none tells what {engine.name} was built from: "
            "build again"
        ) from error


def why_not(engine: Path, record: Record, now: Key) -> list[str]:
    """Why this engine cannot be used for `now`; empty where it can. Reads the whole file."""
    reasons = record.key.differences(now)
    if not reasons and file_sha256(engine) != record.engine_sha256:
        reasons.append("the engine file is damaged, its SHA-256 is not the recorded one")
    return reasons


def write_engine(engine: Path, data: Any, record: Record) -> None:
    """Both files, each beside and renamed; the record last, so that no engine stands under a wrong one.

    Raises LabError where the folder cannot be written or is full.
    """
    text = json.dumps({"schema": SCHEMA, **asdict(record)}, indent=1)
    with suppress(FileNotFoundError):
        record_path(engine).unlink()
    write_whole(engine, data)
    write_whole(record_path(engine), (text + "\n").encode())


def write_whole(path: Path, data: Any) -> None:
    """A file that is there whole or not at all. Raises LabError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path, needed_bytes: int) -> None:
    """Make the folder, and see before a long build that it can be written and has room. Raises LabError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritable(folder, error) from error
    if free < needed_bytes:
        raise LabError(
            f"{folder}: {free >> 20} MiB are free, an engine may take {needed_bytes >> 20} MiB: free some "
            f"space, or name another folder (--cache, or {FOLDER_VARIABLE} for every command)"
        )


def _unwritable(folder: Path, error: OSError) -> LabError:
    return LabError(
        f"{folder}: no engine can be written there ({error.strerror}): free some space, or name another "
        f"folder (--cache, or {FOLDER_VARIABLE} for every command)"
    )
