"""Every image is opened and decoded once before a run, so that none can end it in the middle.

JPEG and PNG in 8-bit grey or RGB are what all our decoders read alike. Whatever else Pillow can read (CMYK,
palettes, transparency, 16 bit, a GIF named .jpg, an orientation outside of EXIF) is converted once to an RGB
PNG in the cache. What it cannot read is broken. Results are remembered by path, size and time of change, so
that the next run reads none.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFile, ImageOps

from data.fetch import is_plain
from data.reader import LOCAL, Reader
from deploy.errors import LabError

# EXIF orientations 5 to 8 lay the picture on its side.
_ORIENTATION_TAG, _SIDEWAYS = 0x0112, (5, 6, 7, 8)
_READ_ALIKE = {"JPEG": ("L", "RGB"), "MPO": ("L", "RGB"), "PNG": ("L", "RGB")}


@dataclass(frozen=True)
class Checked:
    """What became of one file."""

    path: str
    """What to read: the file itself or its converted copy."""
    height: int
    """In px, upright; 0 where broken."""
    width: int
    note: str
    """Empty, or why it was converted, or what is wrong with it."""
    broken: bool


def check_images(
    paths: Sequence[str],
    cache_dir: Path,
    threads: int,
    advance: Callable[[int], None],
    reader: Reader = LOCAL,
    versions: Mapping[str, str] = MappingProxyType({}),
) -> list[Checked]:
    """Decode every file that is not in the cache; `advance` hears of each one done. Keeps the order.

    `versions` tell of objects in a store what the time of change tells of a file. Raises LabError where a
    store fails, which is no finding about an image.
    """
    cache_file = cache_dir / "checked.jsonl"
    known = _read_cache(cache_file)
    keys = [_key(path, versions.get(path)) for path in paths]
    todo = [i for i, key in enumerate(keys) if key not in known]
    advance(len(paths) - len(todo))
    if todo:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(threads) as pool, cache_file.open("a") as cache:
            results = pool.map(
                lambda i: check_image(paths[i], cache_dir / "converted", keys[i], reader), todo
            )
            for i, result in zip(todo, results, strict=True):
                known[keys[i]] = result
                # A broken file may be mended without a trace in its size or time (a mount that was away).
                if not result.broken:
                    # A line of its own, also after the torn last line of a run that was killed.
                    cache.write("\n" + json.dumps({"key": keys[i], **asdict(result)}))
                advance(1)
    return [known[key] for key in keys]


def check_image(path: str, converted_dir: Path, key: str, reader: Reader = LOCAL) -> Checked:
    """Open and decode one file."""
    content = None if is_plain(path) else reader.read(path)
    if content == b"":
        return Checked(path, 0, 0, "0 bytes", True)
    try:
        path.encode()  # DALI and torch take no other names
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            if image.format == "PNG":
                _require_whole_png(Path(path).read_bytes() if content is None else content)
            why = _read_differently(image)
            if not why:
                sideways = image.getexif().get(_ORIENTATION_TAG) in _SIDEWAYS
                width, height = image.size[::-1] if sideways else image.size
                # A JPEG at an eighth of its size: all of it is read and entropy-decoded, for a third.
                image.draft("L", (1, 1))
                image.load()
                return Checked(path, height, width, "", False)
            upright = _to_rgb(ImageOps.exif_transpose(image))
            copy = converted_dir / f"{key}.png"
            _save_atomically(upright, copy)
            return Checked(str(copy), upright.height, upright.width, f"{why}, converted to RGB", False)
    except Exception as error:  # Pillow raises a dozen kinds; whatever it is, this file cannot be used.
        if isinstance(error, OSError) and error.errno is not None and not os.path.exists(path):
            return Checked(path, 0, 0, "cannot be opened: it leads nowhere", True)
        if isinstance(error, OSError) and os.path.isfile(path) and os.path.getsize(path) == 0:
            return Checked(path, 0, 0, "0 bytes", True)
        return Checked(path, 0, 0, f"{type(error).__name__}: {str(error)[:120]}", True)


def _read_differently(image: ImageFile.ImageFile) -> str:
    """What would set our decoders apart on this file; empty where all read it alike."""
    kind = image.format or "?"
    if image.mode not in _READ_ALIKE.get(kind, ()):
        return f"{kind} in mode {image.mode}"
    if kind == "PNG" and str(image.tile[0][3]).endswith(";16B"):
        return "PNG with 16 bits a channel"
    # Only Pillow looks for the orientation in XMP and in text chunks too.
    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    if image.getexif().get(_ORIENTATION_TAG) != exif.get(_ORIENTATION_TAG):
        return f"{kind} with its orientation outside of EXIF"
    return ""


def _require_whole_png(encoded: bytes) -> None:
    """Walk all chunks: Pillow forgives wrong checksums and a torn end, at which torchvision crashes."""
    content = memoryview(encoded)
    at, kind = 8, b""
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", content, at)
            (checksum,) = struct.unpack_from(">I", content, at + 8 + length)
            if checksum != zlib.crc32(content[at + 4 : at + 8 + length]):
                raise ValueError(f"wrong checksum of chunk {kind.decode('latin-1')}")
            at += 12 + length
    except struct.error:
        raise ValueError("truncated") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # convert() would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode} has no known range; save it with 8 bits a channel")
    return image.convert("RGB")


def sort_out(checked: Sequence[Checked], on_bad: str, report: Path) -> tuple[list[bool], list[str]]:
    """Which files to keep, and a summary for the log.

    Writes every finding to `report`. Raises LabError that names the broken files where `on_bad` is "stop".
    """
    broken = [c for c in checked if c.broken]
    converted = [c for c in checked if c.note and not c.broken]
    lines = [f"broken\t{c.path}\t{c.note}" for c in broken]
    lines += [f"converted\t{c.path}\t{c.note}" for c in converted]
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    summary = [f"{len(checked)} images checked, {len(converted)} converted, {len(broken)} broken"]
    if broken and on_bad == "stop":
        shown = "\n".join(f"  - {c.path}: {c.note}" for c in broken[:20])
        more = f"\n  ... and {len(broken) - 20} more, all in {report}" if len(broken) > 20 else ""
        raise LabError(
            f"{len(broken)} of {len(checked)} images cannot be read:\n{shown}{more}\n"
            "mend or remove them, or leave them out with data.on_bad=quarantine"
        )
    if broken:
        summary.append(f"quarantined {len(broken)} broken images, listed in {report}")
    return [not c.broken for c in checked], summary


def _key(path: str, version: str | None) -> str:
    if version is not None:
        return hashlib.sha256(f"{path}\0{version}".encode()).hexdigest()[:32]
    try:
        stat = os.stat(path)
        identity = f"{os.path.abspath(path)}\0{stat.st_size}\0{stat.st_mtime_ns}"
    except OSError:
        identity = f"{os.path.abspath(path)}\0unreadable"
    return hashlib.sha256(os.fsencode(identity)).hexdigest()[:32]


def _read_cache(path: Path) -> dict[str, Checked]:
    return dict(_cache_rows(path)) if path.exists() else {}


def _cache_rows(path: Path) -> Iterator[tuple[str, Checked]]:
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            key, result = row.pop("key"), Checked(**row)
        except (ValueError, TypeError, KeyError):
            continue  # a torn line: that file is checked again
        if not is_plain(result.path) or os.path.exists(result.path):
            yield key, result


def _save_atomically(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        image.save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
