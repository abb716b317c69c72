"""A .pyz of a tiny bundle, and others like it that were tampered with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from deploy.archive import LISTING, MODE, SHEBANG, SIGNATURE
from optimize.archive import write_archive
from tests.test_deploy_bundle import tiny_bundle

Entries = list[tuple[str, bytes]]


def tiny_pyz(folder: Path) -> Path:
    return write_archive(tiny_bundle(folder).root, folder / "tiny.pyz")


def entries_of(archive: Path) -> Entries:
    with zipfile.ZipFile(archive) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


def replaced(entries: Entries, name: str, content: bytes) -> Entries:
    return [(n, content if n == name else old) for n, old in entries]


def listed_anew(entries: Entries) -> Entries:
    """With a listing that fits, as whoever knows the format would write it."""
    files = {
        name: sha256(content).hexdigest() for name, content in entries if name not in (LISTING, SIGNATURE)
    }
    return replaced(entries, LISTING, json.dumps({"schema": 1, "files": files}).encode())


def write_entries(
    path: Path,
    entries: Entries,
    *,
    modes: dict[str, int] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """modes: of those that are no plain files. compression: of all."""
    with path.open("wb") as stream:
        stream.write(SHEBANG)
        with zipfile.ZipFile(stream, "w") as opened:
            for name, content in entries:
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.filename = name  # ZipInfo itself would have made a backslash of another system a slash
                entry.create_system = 3
                entry.external_attr = (modes or {}).get(name, MODE) << 16
                entry.compress_type = compression
                opened.writestr(entry, content)
    return path


def run_pyz(
    archive: Path | str, *arguments: object, cache: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """By this Python, with no package of this repository on its path."""
    environment: dict[str, Any] = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(archive), *map(str, arguments)],
        env={**environment, "EDGELAB_CACHE": str(cache), **variables},
        cwd=Path(archive).absolute().parent,
        capture_output=True,
        text=True,
        check=False,
    )
