"""Damage to the latest checkpoint of a run, for `scripts.torture`."""

from __future__ import annotations

import os
import random
import zipfile
from pathlib import Path

from torch.distributed.checkpoint.filesystem import FileSystemReader

from train.checkpoint import NAME
from train.sharded import sharded_folders

DAMAGES = ("truncated", "emptied", "with a flipped bit")


def damage(run_dir: Path, how: str, draw: random.Random) -> str:
    """Of the newest checkpoint, or of a random file of it; in words."""
    sharded = sharded_folders(run_dir)
    if sharded:
        (run_dir / NAME).unlink()  # which a finished run exports beside its parts
    file = draw.choice(sorted(sharded[0].iterdir())) if sharded else run_dir / NAME
    if how == "with a flipped bit":
        file, place = place_in_a_tensor(sharded[0] if sharded else file, draw)
        with file.open("r+b") as opened:
            opened.seek(place)
            (byte,) = opened.read(1)
            opened.seek(place)
            opened.write(bytes([byte ^ (1 << draw.randrange(8))]))
        return f"{file.name}, byte {place:,} of {file.stat().st_size:,}"
    length = 0 if how == "emptied" else draw.randrange(1, file.stat().st_size)
    os.truncate(file, length)
    return f"{file.name}, {length:,} bytes left"


def place_in_a_tensor(checkpoint: Path, draw: random.Random) -> tuple[Path, int]:
    """A byte that matters: between a checkpoint's tensors lie some that do not."""
    if checkpoint.is_dir():
        stored = FileSystemReader(checkpoint).read_metadata().storage_data.values()
        largest = max(stored, key=lambda info: int(info.length))
        start, length = largest.offset, largest.length
        return checkpoint / largest.relative_path, start + length // 4 + draw.randrange(length // 2)
    with zipfile.ZipFile(checkpoint) as archive:
        entry = max(archive.infolist(), key=lambda info: info.file_size)
    return checkpoint, entry.header_offset + entry.file_size // 4 + draw.randrange(entry.file_size // 2)
