"""Weights that share values, in one file: a codebook a layer and an index of few bits a weight.

Three parts: a line of JSON with the format, its version and the SHA-256 of all that follows it; a line of
JSON with the table of the tensors; and their bytes in the table's order, deflated (zlib, RFC 1950) where the
table says so. All numbers are little-endian. A tensor is

- dense (`bits` null): float32, row by row;
- shared: `size` values float32; then, if it is `scaled`, a factor float32 for each of shape[0] channels; then
  an index of `bits` bits a weight, the highest bit first, filled up to whole bytes. weight = value x factor,
  one float32 multiplication.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import LabError

FORMAT = "edgelab shared weights"
VERSION = 1
FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class Entry:
    """A tensor of the table."""

    name: str
    shape: tuple[int, ...]
    bits: int | None
    size: int | None
    scaled: bool

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) and n >= 0 for n in self.shape):
            raise ValueError(f"shape {self.shape}")
        if self.bits is not None and not (1 <= self.bits <= 8 and 1 <= (self.size or 0) <= 2**self.bits):
            raise ValueError(f"{self.bits} bits for {self.size} values")

    @property
    def parts(self) -> tuple[int, int, int]:
        """Bytes of the values, of the factors and of the indices."""
        count = math.prod(self.shape)
        if self.bits is None or self.size is None:
            return 4 * count, 0, 0
        return 4 * self.size, 4 * self.shape[0] if self.scaled else 0, (count * self.bits + 7) // 8


def read_shared_weights(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Every tensor by its name: those of the FP32 ONNX file that it was written beside, bit for bit.

    Raises LabError for a file that is missing, truncated, altered, or of another version.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LabError(
            f"{path} cannot be read ({error.strerror}): give the path of shared weights"
        ) from error
    try:
        first, _, rest = content.partition(b"\n")
        head = json.loads(first)
        if head["format"] != FORMAT:
            raise ValueError(f"it is {head['format']!r}")
        version, sha256 = head["version"], head["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} ({len(content):,} bytes) holds no shared weights ({error}): use another copy of it"
        ) from error
    if version != VERSION:
        raise LabError(
            f"{path} is of version {version}, this edgelab reads {VERSION}: use the one that wrote it"
        )
    if hashlib.sha256(rest).hexdigest() != sha256:
        raise LabError(
            f"{path} ({len(content):,} bytes) is truncated or altered, its SHA-256 is not the one that it "
            "names: use another copy of it"
        )
    table, _, data = rest.partition(b"\n")
    try:
        entries, payload = _table(json.loads(table), data)
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        raise LabError(f"{path} has a table that does not fit its bytes ({error}): write it again") from error
    tensors, start = {}, 0
    for entry in entries:
        end = start + sum(entry.parts)
        tensors[entry.name] = _tensor(entry, payload[start:end])
        start = end
    return tensors


def unpack(data: bytes, count: int, bits: int) -> npt.NDArray[np.uint8]:
    """`count` indices of `bits` bits each, uint8 [count]."""
    flags = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    # packbits fills up on the right.
    indices: npt.NDArray[np.uint8] = np.packbits(flags, axis=1)[:, 0] >> np.uint8(8 - bits)
    return indices


def _table(table: dict[str, Any], data: bytes) -> tuple[list[Entry], bytes]:
    entries = [
        Entry(str(row["name"]), tuple(row["shape"]), row["bits"], row["size"], bool(row["scaled"]))
        for row in table["tensors"]
    ]
    expected = sum(sum(entry.parts) for entry in entries)
    if table["deflate"]:
        inflater = zlib.decompressobj()
        # One byte more than there is to be tells a longer stream, and no more is ever held.
        data = inflater.decompress(data, expected + 1)
    if len(data) != expected:
        raise ValueError(f"{len(data):,} bytes for tensors of {expected:,}")
    return entries, data


def _tensor(entry: Entry, data: bytes) -> npt.NDArray[np.float32]:
    values_end = entry.parts[0]
    scales_end = values_end + entry.parts[1]
    values = np.frombuffer(data[:values_end], FLOAT).astype(np.float32)
    if entry.bits is None:
        return values.reshape(entry.shape)
    indices = unpack(data[scales_end:], math.prod(entry.shape), entry.bits)
    if indices.size and int(indices.max()) >= len(values):
        raise LabError(
            f"{entry.name}: index {int(indices.max())} of {len(values)} values; write the file again"
        )
    weight = values[indices].reshape(entry.shape)
    if entry.scaled:
        scales = np.frombuffer(data[values_end:scales_end], FLOAT).astype(np.float32)
        weight = weight * scales.reshape(-1, *[1] * (len(entry.shape) - 1))
    return weight
