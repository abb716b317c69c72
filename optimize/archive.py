"""From a bundle to the one file that goes to the device: `deploy/archive.py` says what is in it.

The same inputs give the same bytes: entries in order, of one date and mode, not compressed. What is installed
here is an input: of each library every file, as its distribution brought it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from importlib import metadata
from pathlib import Path, PurePosixPath

from deploy.archive import BUNDLE, LISTING, MODE, SCHEMA, SHEBANG, SIGNATURE, check_all, open_archive
from deploy.bundle import open_bundle
from deploy.errors import LabError
from deploy.manifest import MANIFEST
from deploy.signature import sign

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("uvicorn", "h11", "click", "typing-extensions", "nvidia-ml-py", "pyyaml")
"""For the demo's page, watts of a GPU, targets. typing-extensions is what uvicorn asks for on Python 3.10."""
_EXTENSION_NOT_NEEDED = {"pyyaml"}
"""Works without the compiled part that it has beside its Python: yaml/__init__.py asks for it and goes on."""
_COMPILED = {".so", ".pyd", ".dll", ".dylib", ".pyc"}
_LICENCES = ("license", "licence", "copying", "notice")
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_MOST = 0xFFFFFFFF  # bytes; beyond it a zip needs another format
_PIECE = 1 << 20


def write_archive(bundle: Path, out: Path, key: Path | None = None) -> Path:
    """Write a bundle as a .pyz, which is there whole or not at all, and read it back.

    key: a private Ed25519 key in PEM, to sign it with. Raises LabError.
    """
    sources = archive_files(bundle)
    if out.is_dir():
        raise LabError(f"{out}: is a folder; name a file, such as {out / f'{bundle.name}.pyz'}")
    if (size := sum(source.stat().st_size for source in sources.values())) > _MOST:
        raise LabError(f"{bundle}: {size >> 20} MiB, a .pyz holds 4 GiB: write a bundle of fewer variants")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, sources, key)
        written = open_archive(temporary)
        check_all(written)
        for name, digest in open_bundle(bundle).files.items():
            if written.files[f"{BUNDLE}{name}"] != digest:
                raise LabError(f"{bundle}: {name} changed while it was read; run the command again")
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        raise LabError(
            f"{out}: cannot be written ({error.strerror}), it needs {size >> 20} MiB; free some space or "
            "choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return out


def archive_files(bundle: Path) -> dict[str, Path]:
    """Where each entry comes from, in order. Raises LabError for a library that is missing or is not pure
    Python."""
    found = {f"{BUNDLE}{name}": bundle / name for name in [MANIFEST, *open_bundle(bundle).files]}
    found["__main__.py"] = ROOT / "deploy" / "pyz_main.py"
    found["LICENSE"] = ROOT / "LICENSE"
    found["configs/jetpacks.yaml"] = ROOT / "configs" / "jetpacks.yaml"
    folders = [*(ROOT / "configs" / "target").glob("*.yaml"), *(ROOT / "deploy").rglob("*")]
    for path in folders:
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith("."):
            found[path.relative_to(ROOT).as_posix()] = path
    for library in LIBRARIES:
        found |= {f"vendor/{name}": path for name, path in _library(library)}
    return dict(sorted(found.items()))


def _library(name: str) -> Iterator[tuple[str, Path]]:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise LabError(f"a .pyz carries {name}, which is not installed here: pip install {name}") from error
    pure = "Root-Is-Purelib: true" in (distribution.read_text("WHEEL") or "")
    if not pure and name not in _EXTENSION_NOT_NEEDED:
        raise LabError(
            f"{name} {distribution.version} is not pure Python here; install a wheel that is, `-none-any`"
        )
    for file in distribution.files or ():
        if _is_wanted(PurePosixPath(file), pure):
            yield file.as_posix(), Path(str(file.locate()))


def _is_wanted(file: PurePosixPath, pure: bool) -> bool:
    """Its code, and of its metadata the name, the version and the licences."""
    if file.parts[0] == ".." or "__pycache__" in file.parts:
        return False
    if file.parts[0].endswith(".dist-info"):
        return file.name == "METADATA" or any(word in file.as_posix().lower() for word in _LICENCES)
    if len(file.parts) == 1:
        return file.suffix == ".py" and file.name != "example.py"
    return file.suffix not in _COMPILED and (
        pure or (file.suffix == ".py" and not file.parts[0].startswith("_"))
    )


def _write(path: Path, sources: dict[str, Path], key: Path | None) -> None:
    with path.open("wb") as stream:
        stream.write(SHEBANG)
        with zipfile.ZipFile(stream, "w") as opened:
            files = {name: _add(opened, name, source) for name, source in sources.items()}
            listing = json.dumps({"schema": SCHEMA, "files": files}, indent=0).encode()
            opened.writestr(_entry(LISTING), listing)
            if key is not None:
                opened.writestr(_entry(SIGNATURE), sign(listing, key))
        stream.flush()
        os.fsync(stream.fileno())


def _add(opened: zipfile.ZipFile, name: str, source: Path) -> str:
    """Its SHA-256."""
    digest = sha256()
    entry = _entry(name)
    entry.file_size = source.stat().st_size
    with source.open("rb") as read, opened.open(entry, "w") as to:
        while piece := read.read(_PIECE):
            digest.update(piece)
            to.write(piece)
    return digest.hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = MODE << 16
    return entry
