"""python -m data.shards: the checked images of any data config as WebDataset shards, in a folder or a store.

A shard is a tar of `<key>.<suffix>`, the encoded image as it is, and `<key>.cls`, its label in decimal. The
same images give the same bytes. Beside each stands an index as DALI's `fn.readers.webdataset` takes it, and
`manifest.json`, written last, has all that `data=shards` needs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.images import WriteShardsConfig
from configs.load import run_command
from data.fetch import is_plain, parse_address
from data.index import Index, Int64
from data.output import Output
from data.prepare import Splits, prepare
from data.reader import Reader, reader_of
from data.shard_manifest import MANIFEST, SCHEMA, Entry, Manifest, to_json
from deploy.bundle import file_sha256
from deploy.errors import LabError

_STATE = "writing.json"
"""Which shards are whole, until the manifest is."""


@dataclass(frozen=True)
class Images:
    """One split in the order of the shards; `cuts` are the first image of each shard and the end."""

    index: Index
    lengths: Int64
    """[n] bytes."""
    cuts: tuple[int, ...]


def write_shards(config: WriteShardsConfig, splits: Splits, say: Callable[[str], None]) -> None:
    """Write what is missing of the shards and their manifest. Raises LabError, and then nothing torn bears
    a final name."""
    store = Output(config.out, config.data.storage)
    present = store.names()
    if MANIFEST in present:
        raise LabError(f"out={config.out} holds a finished set of shards: give another out, or remove it")
    limit = config.shard_mib << 20
    images = {
        split: _deal(index, limit, config.seed)
        for split, index in (("train", splits.train), ("val", splits.val))
    }
    inputs = _fingerprint(images)
    if _STATE in present:
        state = json.loads(store.read(_STATE))
        if state["inputs"] != inputs:
            raise LabError(
                f"out={config.out} holds shards of other images, or of another seed or shard_mib, that were "
                "not finished: remove them, or give another out"
            )
    elif any(name.endswith(".tar") for name in present):
        raise LabError(f"out={config.out} holds tar files without {MANIFEST}: give another out")
    else:
        state = {"inputs": inputs, "sha256": {}}
        store.put(_STATE, json.dumps(state).encode())
    class_names = list(splits.train.class_names)
    manifest = Manifest(SCHEMA, class_names, {"train": [], "val": []})
    kept = 0
    for split, part in images.items():
        reader = reader_of(config.data, part.index)
        for number, (first, end) in enumerate(zip(part.cuts[:-1], part.cuts[1:], strict=True)):
            name = f"{split}-{number:06d}.tar"
            entry = _entry(name, part, first, end)
            sha256 = state["sha256"].get(name)
            if sha256 is not None and {name, _index_name(name)} <= present and store.sha256(name) == sha256:
                kept += 1
            else:
                with store.staged(name) as path:
                    _write_tar(path, entry, part.index.paths[first:end], reader)
                    sha256 = file_sha256(path)
                    store.publish(path, name)
                store.put(_index_name(name), _dali_index(entry))
                state["sha256"][name] = sha256
                store.put(_STATE, json.dumps(state).encode())
            manifest.splits["train" if split == "train" else "val"].append(_with_digest(entry, sha256))
        say(f"{split}: {len(part.index)} images in {len(part.cuts) - 1} shards")
    store.put(MANIFEST, to_json(manifest).encode())
    store.remove(_STATE)
    say(f"{config.out}: complete" + (f", {kept} shards of an earlier start kept" if kept else ""))


def _deal(index: Index, limit: int, seed: int) -> Images:
    """Shuffled once, so that each shard has a mix of the classes, and cut where the images fill a shard."""
    rng = np.random.Generator(np.random.Philox(seed))
    index = index.take(rng.permutation(len(index)))
    lengths = np.array([_length(path) for path in index.paths], np.int64)
    cuts, used = [0], 0
    for row, length in enumerate(lengths.tolist()):
        if used and used + length > limit:
            cuts.append(row)
            used = 0
        used += length
    return Images(index, lengths, (*cuts, len(index)))


def _length(path: str) -> int:
    length = parse_address(path).length
    return os.path.getsize(path) if length is None else length


def _fingerprint(images: dict[str, Images]) -> str:
    """Of everything that the shards depend on; files by name, size and time of change."""
    digest = hashlib.sha256()
    for split, part in images.items():
        digest.update(json.dumps([split, part.index.class_names, part.cuts]).encode())
        for array in (part.lengths, part.index.labels, part.index.shapes):
            digest.update(array.tobytes())
        for path in part.index.paths:
            changed = os.stat(path).st_mtime_ns if is_plain(path) else 0
            digest.update(f"{path}\0{changed}\0".encode())
        for shard in part.index.shards:
            digest.update(shard.sha256.encode())
    return digest.hexdigest()


def _entry(name: str, images: Images, first: int, end: int) -> Entry:
    """Where everything will be in the tar; its SHA-256 is still to come."""
    members, offsets, at = [], [], 0
    lengths: list[int] = images.lengths[first:end].tolist()
    labels: list[int] = images.index.labels[first:end].tolist()
    for row, length, label in zip(range(first, end), lengths, labels, strict=True):
        members.append(f"{row:09d}{_suffix(images.index.paths[row])}")
        offsets.append(at + tarfile.BLOCKSIZE)
        at += 2 * tarfile.BLOCKSIZE + _blocks(length) + _blocks(len(str(label)))
    size = -(-(at + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
    shapes = [(int(h), int(w)) for h, w in images.index.shapes[first:end]]
    return Entry(name, size, "0" * 64, members, offsets, lengths, labels, shapes)


def _suffix(path: str) -> str:
    """Of an image's name; an image that is part of another tar has none."""
    suffix = os.path.splitext(parse_address(path).file)[1].lower()
    return ".img" if suffix in ("", ".tar") else suffix


def _blocks(length: int) -> int:
    return -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _with_digest(entry: Entry, sha256: str) -> Entry:
    return Entry(
        entry.name,
        entry.size,
        sha256,
        entry.members,
        entry.offsets,
        entry.lengths,
        entry.labels,
        entry.shapes,
    )


def _write_tar(target: Path, entry: Entry, paths: tuple[str, ...], reader: Reader) -> None:
    with target.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for first in range(0, len(paths), reader.threads):  # a round at a time bounds the memory
            some = slice(first, first + reader.threads)
            contents = reader.read_all(paths[some])
            for path, content, member, length, label in zip(
                paths[some],
                contents,
                entry.members[some],
                entry.lengths[some],
                entry.labels[some],
                strict=True,
            ):
                if len(content) != length:
                    raise LabError(
                        f"{path} changed while the shards were written: give the same command again"
                    )
                _add(tar, member, content)
                _add(tar, f"{member.partition('.')[0]}.cls", str(label).encode())
        # The close pads to a whole record, as tar does.


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """With nothing in the header that differs between two machines: no owner, time 0."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o444
    tar.addfile(info, io.BytesIO(content))


def _dali_index(entry: Entry) -> bytes:
    """The format that DALI's wds2idx writes: a line a sample: suffix, offset, size and name of each part."""
    lines = [f"v1.2 {len(entry.members)}"]
    for member, offset, length, label in zip(
        entry.members, entry.offsets, entry.lengths, entry.labels, strict=True
    ):
        key, _, suffix = member.partition(".")
        behind = offset + _blocks(length) + tarfile.BLOCKSIZE
        lines.append(f"{suffix} {offset} {length} {member} cls {behind} {len(str(label))} {key}.cls")
    return ("\n".join(lines) + "\n").encode()


def _index_name(name: str) -> str:
    return f"{name.removesuffix('.tar')}.idx"


def write(config: WriteShardsConfig, overrides: Sequence[str]) -> None:
    splits = prepare(config.data, Path(config.data.cache_dir) / "shards-written", print)
    write_shards(config, splits, print)


if __name__ == "__main__":
    run_command("shards", WriteShardsConfig, write)
