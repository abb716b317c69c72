"""The manifest of a set of shards, and the two indexes that it makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tarfile import BLOCKSIZE, TarError, TarInfo
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from configs.fields import CLOSED
from configs.images import ShardsConfig, StorageConfig
from data.fetch import fetch, is_url, join, part_of
from data.index import Index, Shard
from deploy.bundle import file_sha256
from deploy.errors import LabError
from deploy.machine import usable_cores

MANIFEST = "manifest.json"
SCHEMA = 1
_REMEDY = "write the shards anew with python -m data.shards"
_Whole = Annotated[int, Field(ge=0)]


@dataclass(config=CLOSED, frozen=True)
class Entry:
    """One shard; the lists have an element for each of its images."""

    name: Annotated[str, Field(pattern=r"^[\w-]+\.tar$")]
    size: _Whole
    """Bytes."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    members: list[str]
    """Names of the images in the tar."""
    offsets: list[_Whole]
    """Of the first byte of each image in the tar."""
    lengths: list[_Whole]
    """Bytes of each image."""
    labels: list[_Whole]
    shapes: list[tuple[int, int]]
    """Height and width in px, upright."""


@dataclass(config=CLOSED, frozen=True)
class Manifest:
    schema: int
    class_names: list[str]
    splits: dict[Literal["train", "val"], list[Entry]]


def to_json(manifest: Manifest) -> str:
    values = TypeAdapter(Manifest).dump_python(manifest, mode="json")
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False) + "\n"


def read_manifest(root: str, storage: StorageConfig) -> Manifest:
    """Raises LabError where there is none, or none that can be used."""
    where = join(root, MANIFEST)
    try:
        content = fetch(where, storage) if is_url(root) else Path(where).read_bytes()
    except FileNotFoundError:
        raise LabError(
            f"data.root={root} holds no {MANIFEST}: give what python -m data.shards wrote; where it was "
            "stopped, give the same command again"
        ) from None
    try:
        raw = json.loads(content)
        if isinstance(raw, dict) and isinstance(raw.get("schema"), int) and raw["schema"] > SCHEMA:
            raise LabError(
                f"{where} has schema {raw['schema']}, and this version reads up to {SCHEMA}: update this "
                "repository, or write the shards with this version"
            )
        manifest = TypeAdapter(Manifest).validate_json(content)
    except (ValidationError, ValueError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise LabError(f"{where} is no manifest of shards ({first}): {_REMEDY}") from None
    for split in manifest.splits.values():
        for entry in split:
            _require_sound(where, entry, len(manifest.class_names))
    return manifest


def _require_sound(where: str, entry: Entry, num_classes: int) -> None:
    columns = (entry.offsets, entry.lengths, entry.labels, entry.shapes)
    if {len(column) for column in columns} != {len(entry.members)}:
        raise LabError(f"{where}: the lists of {entry.name} differ in length: {_REMEDY}")
    if max(entry.labels, default=0) >= num_classes:
        raise LabError(f"{where}: {entry.name} has labels beyond the {num_classes} classes: {_REMEDY}")
    for member, offset, length in zip(entry.members, entry.offsets, entry.lengths, strict=True):
        if offset < BLOCKSIZE or offset + length > entry.size:
            raise LabError(
                f"{where}: {member} at offset {offset} with {length} bytes is not within the "
                f"{entry.size} bytes of {entry.name}: {_REMEDY}"
            )


def shard_indexes(
    config: ShardsConfig, say: Callable[[str], None], advance: Callable[[int, int], None]
) -> tuple[Index, Index]:
    """The images for training and for validation, as they were checked when the shards were written.

    Local shards are verified now, unless they were before; those of a store when they are downloaded.
    `advance` hears of the shards done of how many. Raises LabError.
    """
    val_root = config.val_root or config.root
    train = read_manifest(config.root, config.storage)
    val = train if config.val_root is None else read_manifest(val_root, config.storage)
    if train.class_names != val.class_names:
        missing = sorted(set(train.class_names) - set(val.class_names))
        unknown = sorted(set(val.class_names) - set(train.class_names))
        raise LabError(
            f"data.root={config.root} and data.val_root={val_root} do not have the same classes in the same "
            f"order: the second misses {missing[:10]} and adds {unknown[:10]}; write both from one data set"
        )
    given = ((config.root, train.splits.get("train", [])), (val_root, val.splits.get("val", [])))
    for (root, entries), split in zip(given, ("train", "val"), strict=True):
        if not any(entry.members for entry in entries):
            raise LabError(f"{join(root, MANIFEST)} has no {split} shards: {_REMEDY}")
    local = [(Path(root, e.name), e) for root, entries in given if not is_url(root) for e in entries]
    _verify(local, Path(config.cache_dir) / "verified.txt", advance)
    say(f"{sum(len(entries) for _, entries in given)} shards, {len(local)} of them local and verified")
    sizes = [e.size for root, entries in given if is_url(root) for e in entries]
    _require_cache(sizes, config.storage)
    names = tuple(train.class_names)
    return _index(*given[0], names), _index(*given[1], names)


def _index(root: str, entries: list[Entry], class_names: tuple[str, ...]) -> Index:
    files = [join(root, entry.name) for entry in entries]
    return Index(
        tuple(
            part_of(file, offset, length)
            for file, entry in zip(files, entries, strict=True)
            for offset, length in zip(entry.offsets, entry.lengths, strict=True)
        ),
        np.array([label for entry in entries for label in entry.labels], np.int64),
        np.array([shape for entry in entries for shape in entry.shapes], np.int64),
        class_names,
        shards=tuple(
            Shard(file, entry.size, entry.sha256) for file, entry in zip(files, entries, strict=True)
        ),
    )


def _require_cache(sizes: list[int], storage: StorageConfig) -> None:
    """The shards of one group, and one more of each split, must fit at the same time."""
    least = sum(sorted(sizes)[-(storage.shuffle_shards + 2) :]) / (1 << 30)
    if least > storage.cache_gib:
        raise LabError(
            f"data.storage.cache_gib={storage.cache_gib:g} is less than the {least:.3g} GiB of the "
            f"{storage.shuffle_shards + 2} largest shards, which may be in use at a time: raise it, or lower "
            f"data.storage.shuffle_shards={storage.shuffle_shards}"
        )


def _verify(shards: list[tuple[Path, Entry]], known_file: Path, advance: Callable[[int, int], None]) -> None:
    """Each shard against its manifest, once as long as neither its size nor its time of change differs."""
    known = set(known_file.read_text().splitlines()) if known_file.exists() else set()
    known_file.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(usable_cores()) as pool, known_file.open("a") as lines:
        done = pool.map(lambda shard: _verify_one(shard[0], shard[1], known), shards)
        for count, key in enumerate(done):
            if key not in known:
                lines.write(f"\n{key}")  # a line of its own, also after a torn one
            advance(count + 1, len(shards))


def _verify_one(path: Path, entry: Entry, known: set[str]) -> str:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise LabError(f"{path} is missing, which {MANIFEST} names: copy it there, or {_REMEDY}") from None
    if stat.st_size != entry.size:
        raise LabError(f"{path} has {stat.st_size} bytes and not the manifest's {entry.size}: {_REMEDY}")
    table = TypeAdapter(Entry).dump_json(entry)
    identity = f"{path.absolute()}\0{stat.st_mtime_ns}\0".encode() + table
    key = sha256(identity).hexdigest()
    if key in known:
        return key
    digest = file_sha256(path)
    if digest != entry.sha256:
        raise LabError(f"{path}: its SHA-256 is {digest} and not the manifest's {entry.sha256}: {_REMEDY}")
    with path.open("rb") as file:
        for member, offset, length in zip(entry.members, entry.offsets, entry.lengths, strict=True):
            file.seek(offset - BLOCKSIZE)
            try:
                found = TarInfo.frombuf(file.read(BLOCKSIZE), "utf-8", "strict")
                right = (found.name, found.size) == (member, length)
            except TarError:
                right = False
            if not right:
                raise LabError(f"{path} has no member {member} of {length} bytes at {offset}: {_REMEDY}")
    return key
