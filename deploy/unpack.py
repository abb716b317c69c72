"""Where the files of a .pyz lie while they are used: unpacked once, checked at each start.

    <cache>/NAME-DIGEST/app/...       code and configs: every file's SHA-256 is checked at each start
    <cache>/NAME-DIGEST/bundle/...    its listing's is; the files that it lists are checked when it is opened
    <cache>/NAME-DIGEST/bundle.engines  what TensorRT built of it

What is missing or altered is written again, file by file, each beside its place and renamed: so two that
start at once do not disturb each other, and one that was killed is made up for. Only the user may write
there: Python keeps compiled code beside the sources, which no SHA-256 covers.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path

from deploy.archive import BUNDLE, Archive, copy_entry
from deploy.errors import LabError

CACHE_VARIABLE = "EDGELAB_CACHE"
APP = "app"
_MANIFEST = f"{BUNDLE}bundle.json"
_UNFINISHED = ".tmp"
_ROOM = 8 << 20  # for what Python compiles
_WRITTEN = 315532800
"""1980-01-01, as in the archive: a file of the bundle that has another date was not written by us."""


def unpacked(archive: Archive, part: str = "") -> Path:
    """The folder with `app` and `bundle`, whole. part: the only entries wanted, by the beginning of their
    names.

    Where the usual place cannot be written, or has no room, a temporary folder is taken until the program
    ends, and that is told on stderr. Raises LabError where there is none either, or the archive is damaged.
    """
    name = f"{archive.path.stem}-{archive.digest[:16]}"
    try:
        folder = cache_folder() / name
        _settle(archive, folder, part)
        return folder
    except OSError as error:
        first = _reason(error)
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix="edgelab-"))
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        _settle(archive, temporary / name, part)
    except OSError as error:
        size = sum(archive.sizes.values()) + _ROOM >> 20
        raise LabError(
            f"{archive.path} cannot be unpacked, it needs {size} MiB: {first}; {_reason(error)}: free some "
            f"space, or name another folder with {CACHE_VARIABLE}"
        ) from error
    print(f"note: {first}: unpacked for this run only, into {temporary}", file=sys.stderr)
    return temporary / name


def cache_folder() -> Path:
    """What EDGELAB_CACHE names, else edgelab in XDG_CACHE_HOME, else in ~/.cache. Raises OSError without a
    home."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).absolute()
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named).absolute() / "edgelab"
    try:
        return Path.home() / ".cache" / "edgelab"
    except RuntimeError as error:
        raise OSError(2, "no home folder is known", "~") from error


def _settle(archive: Archive, folder: Path, part: str) -> None:
    """Raises OSError; a folder that was not there before is gone again then."""
    wanted = {name: folder / _place(name) for name in archive.files if name.startswith(part)}
    new = not folder.exists()
    if new:
        _check_room(folder, sum(archive.sizes[name] for name in wanted) + _ROOM)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        _clean(folder, {folder / _place(name) for name in archive.files})
        missing = [name for name, path in wanted.items() if not _is_right(archive, name, path)]
        if missing:
            with zipfile.ZipFile(archive.path) as opened:
                for name in missing:
                    _write(archive, opened, name, wanted[name])
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _place(name: str) -> str:
    return name if name.startswith(BUNDLE) else f"{APP}/{name}"


def _is_right(archive: Archive, name: str, path: Path) -> bool:
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != archive.sizes[name]:
            return False
        if name.startswith(BUNDLE) and name != _MANIFEST:  # its SHA-256 is read when the bundle is opened
            return found.st_mtime == _WRITTEN
        return sha256(path.read_bytes()).hexdigest() == archive.files[name]
    except (FileNotFoundError, NotADirectoryError):
        return False


def _write(archive: Archive, opened: zipfile.ZipFile, name: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with temporary.open("wb") as stream:
            copy_entry(archive, opened, name, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.utime(temporary, (_WRITTEN, _WRITTEN))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _clean(folder: Path, wanted: set[Path]) -> None:
    """A file that nobody listed could be imported in place of another; of a start that was killed there is
    half a file left."""
    for base, folders, files in os.walk(folder / APP):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        for name in files:
            if Path(base, name) not in wanted and not name.endswith(_UNFINISHED):
                Path(base, name).unlink(missing_ok=True)
    for path in folder.rglob(f".*{_UNFINISHED}"):
        if not _is_running(path.name.split(".")[-2]):
            path.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _check_private(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(13, "another user can write there", str(folder))


def _check_room(folder: Path, needed: int) -> None:
    place = folder
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < needed:
        raise OSError(28, f"{free >> 20} MiB are free", str(folder.parent))


def _reason(error: OSError) -> str:
    return f"{error.filename or cache_folder()}: {error.strerror or error}"
