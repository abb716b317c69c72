"""The .pyz: one file with the runtime, what it needs in pure Python, and a bundle; this reads it.

    __main__.py         where Python begins (`deploy/pyz_main.py`)
    archive.json        the SHA-256 of every entry but itself and the next
    archive.sig         Ed25519 of archive.json, 64 bytes; only where it was signed
    bundle/...          the bundle
    configs/...         the targets, as YAML
    deploy/...          this package
    vendor/...          libraries in pure Python, with their licences

A zip behind one line for the shell. Nothing in it is compressed, so that it is the same bytes whatever zlib
made it; the entries lie one behind the other without a gap, so that no byte of the file is unaccounted for.

What a check from inside can show is that the file is whole: copied without damage, mixed with nothing. It
cannot show who wrote it: whoever changes the file can change the check. That is what the signature is for,
and it must be asked for by code that is trusted already: `python -m deploy verify NAME.pyz
--require-signature PUBLIC.pem` from a checkout. The same option of the .pyz itself finds out a file that was
mistaken for another, not one that was forged.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from struct import Struct
from struct import error as StructError
from typing import IO, Any

from deploy.errors import LabError

SCHEMA = 1
SHEBANG = b"#!/usr/bin/env python3\n"
LISTING = "archive.json"
SIGNATURE = "archive.sig"
BUNDLE = "bundle/"
MODE = 0o100644
"""Of every entry: a plain file. Anything else, such as a link, is refused."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")
"""Neither absolute nor with `..`, a backslash, a drive or a hidden part."""
# The zip's records, as PKWARE's APPNOTE.TXT has them, and what is the same in each of ours.
_LOCAL, _CENTRAL, _END = Struct("<4s5H3L2H"), Struct("<4s6H3L5H2L"), Struct("<4s4H2LH")
_DATE = 1 << 5 | 1  # 1 January 1980
_UNIX = 3 << 8 | 20
_PIECE = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A .pyz whose list of entries was checked; their content is, when it is read."""

    path: Path
    files: dict[str, str]
    """SHA-256 by name."""
    sizes: dict[str, int]
    """Bytes by name."""
    digest: str
    """SHA-256 of the listing, and so of everything."""


def is_archive(path: Path) -> bool:
    """Whether it is meant to be a .pyz and no folder."""
    return path.is_file() or (path.suffix == ".pyz" and not path.is_dir())


def open_archive(path: Path) -> Archive:
    """Raises LabError where it is no .pyz of ours, of a later schema, cut short, or holds what it does not
    list."""
    try:
        with path.open("rb") as stream, zipfile.ZipFile(stream) as opened:
            entries = opened.infolist()
            stream.seek(0)
            _check_records(path, stream, entries)
            raw = opened.read(LISTING)
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}; check the path") from error
    # KeyError: no listing. The others are what zipfile raises for bytes that are no zip.
    except (
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        StructError,
    ) as error:
        raise _damaged(path, f"{error}".strip("'\"")) from error
    files = _files(path, raw)
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise _damaged(path, f"twice in it: {sorted({n for n in names if names.count(n) > 1})[:3]}")
    unlisted = sorted(set(names) - set(files) - {LISTING, SIGNATURE})
    missing = sorted(set(files) - set(names))
    if unlisted or missing:
        raise _damaged(path, f"not in its list: {unlisted[:3]}; listed and not there: {missing[:3]}")
    sizes = {entry.filename: entry.file_size for entry in entries}
    return Archive(path, files, sizes, sha256(raw).hexdigest())


def read_raw(archive: Archive, name: str) -> bytes:
    """The listing or the signature, which no SHA-256 covers. Raises LabError, KeyError where it is not
    there."""
    try:
        with zipfile.ZipFile(archive.path) as opened:
            return opened.read(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise _damaged(archive.path, str(error)) from error


def copy_entry(archive: Archive, opened: zipfile.ZipFile, name: str, to: IO[bytes] | None) -> None:
    """Write an entry to a stream, or to none to check it alone.

    Raises LabError where its SHA-256 is not the listed one, and OSError where it cannot be written.
    """
    digest = sha256()
    try:
        source = opened.open(name)
    except (OSError, zipfile.BadZipFile) as error:
        raise _damaged(archive.path, str(error)) from error
    with source:
        for piece in _pieces(archive, source, name):
            digest.update(piece)
            if to is not None:
                to.write(piece)
    if digest.hexdigest() != archive.files[name]:
        raise _altered(archive, name)


def check_all(archive: Archive) -> int:
    """Hold every entry against its SHA-256; returns how many there are. Raises LabError."""
    with zipfile.ZipFile(archive.path) as opened:
        for name in archive.files:
            copy_entry(archive, opened, name, None)
    return len(archive.files)


def _pieces(archive: Archive, source: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        while piece := source.read(_PIECE):
            yield piece
    except (OSError, EOFError, zipfile.BadZipFile) as error:  # the last: its CRC-32 is wrong
        raise _altered(archive, name) from error


def _check_records(path: Path, stream: IO[bytes], entries: Sequence[zipfile.ZipInfo]) -> None:
    """The zip's own records must be those that `optimize/archive.py` writes, byte for byte: plain files of
    one date, not compressed, one behind the other, nothing before them, between or behind."""
    offset, directory = len(SHEBANG), b""
    if stream.read(offset) != SHEBANG:
        raise _damaged(path, "it does not begin as one")
    for entry in entries:
        # orig_filename: zipfile cuts a name at a NUL.
        if not _NAME.fullmatch(entry.orig_filename):
            raise LabError(
                f"{path}: entry {entry.orig_filename!r} lies outside its folder; do not use this file"
            )
        if entry.external_attr != MODE << 16:
            raise LabError(f"{path}: entry {entry.filename!r} is no plain file; do not use this file")
        name, size = entry.filename.encode(), entry.file_size
        facts = (20, 0, 0, 0, _DATE, entry.CRC, size, size, len(name), 0)
        header = _LOCAL.pack(b"PK\3\4", *facts) + name
        if stream.read(len(header)) != header:
            raise _damaged(path, f"its record of {entry.filename!r} is not as we write it")
        directory += _CENTRAL.pack(b"PK\1\2", _UNIX, *facts, 0, 0, 0, entry.external_attr, offset) + name
        offset = stream.seek(size, 1)
    end = _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), offset, 0)
    if stream.read(len(directory) + len(end) + 1) != directory + end:
        raise _damaged(path, "its last part is not as we write it")


def _files(path: Path, raw: bytes) -> dict[str, str]:
    try:
        listing: Any = json.loads(raw)
    except ValueError as error:
        raise _damaged(path, f"{LISTING} is not JSON: {error}") from error
    schema = listing.get("schema") if isinstance(listing, dict) else None
    if type(schema) is not int or schema < 1:
        raise _damaged(path, f"{LISTING}: schema {schema!r} must be an integer from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise LabError(f"{path}: schema {schema}, this edgelab reads up to {SCHEMA}; update edgelab")
    files = listing.get("files")
    if set(listing) != {"schema", "files"} or not isinstance(files, dict):
        raise _damaged(path, f"{LISTING} must hold `schema` and `files`")
    if not all(isinstance(digest, str) for digest in files.values()):
        raise _damaged(path, f"{LISTING}: a SHA-256 is no text")
    return files


def _damaged(path: Path, why: str) -> LabError:
    return LabError(f"{path}: no whole .pyz of edgelab ({why}); copy or write the file again")


def _altered(archive: Archive, name: str) -> LabError:
    return LabError(
        f"{archive.path}: {name} was altered: it has not the SHA-256 that {LISTING} lists; "
        "copy or write the file again"
    )
