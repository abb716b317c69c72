"""A network whose weights share values, as the file that `deploy.shared_weights` reads."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from deploy.errors import LabError
from deploy.shared_weights import FLOAT, FORMAT, VERSION, Entry, read_shared_weights
from optimize.export import folded_norms
from optimize.files import write_bytes
from train.codebooks import codebooks

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SharedFile:
    """Sizes in bytes."""

    fp32_bytes: int
    """Of the ONNX file with the same weights, and the graph."""
    packed_bytes: int
    """Before deflating; the file has a header besides."""
    file_bytes: int
    deflate: bool
    ratio: float
    """fp32_bytes / file_bytes."""


def write_shared_weights(model: nn.Module, fp32_path: Path, path: Path, deflate: bool) -> SharedFile:
    """Write the initialisers of the ONNX file that `model` was exported to, without loss.

    Folding a BatchNorm scales each output channel, which leaves no value that is shared: the file keeps the
    values from before and a factor a channel. What is not shared is there as it is. Raises LabError for a
    model that has no codebooks.
    """
    books = codebooks(model)
    if not books:
        raise LabError("the network has no codebooks: give the stage `cluster` before")
    scales = _folded_scales(model)
    tensors = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(fp32_path).graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    }
    entries, parts = [], []
    for name, value in tensors.items():
        layer = name.removesuffix(".weight")
        if layer == name or layer not in books:
            entries.append(Entry(name, value.shape, None, None, False))
            parts.append(value.astype(FLOAT).tobytes())
            continue
        codebook, indices = (tensor.numpy() for tensor in books[layer])
        scale = scales.get(layer)
        bits = max(1, (len(codebook) - 1).bit_length())
        entries.append(Entry(name, value.shape, bits, len(codebook), scale is not None))
        parts.append(codebook.astype(FLOAT).tobytes())
        if scale is not None:
            parts.append(scale.astype(FLOAT).tobytes())
        parts.append(pack(indices, bits))
    payload = b"".join(parts)
    table = json.dumps({"deflate": deflate, "tensors": [asdict(entry) for entry in entries]})
    rest = table.encode() + b"\n" + (zlib.compress(payload, 9) if deflate else payload)
    head = {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(rest).hexdigest()}
    write_bytes(json.dumps(head).encode() + b"\n" + rest, path)
    _require_exact(path, tensors)
    size, dense = path.stat().st_size, fp32_path.stat().st_size
    return SharedFile(dense, len(payload), size, deflate, dense / size)


def pack(indices: npt.NDArray[np.uint8], bits: int) -> bytes:
    """The inverse of `deploy.shared_weights.unpack`."""
    flags = np.unpackbits(indices.reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(flags).tobytes()


def _folded_scales(model: nn.Module) -> dict[str, Array]:
    """float32 [outputs] of each convolution with a BatchNorm behind: what torch's `fuse_conv_bn_weights`
    multiplies its weight with."""
    scales = {}
    for conv, name in folded_norms(model).items():
        norm = cast(nn.BatchNorm2d, model.get_submodule(name))
        variance = cast(torch.Tensor, norm.running_var).cpu().float()
        scales[conv] = (norm.weight.detach().cpu().float() * torch.rsqrt(variance + norm.eps)).numpy()
    return scales


def _require_exact(path: Path, tensors: dict[str, Array]) -> None:
    read = read_shared_weights(path)
    other = [name for name, value in tensors.items() if not np.array_equal(read[name], value)]
    if other:
        path.unlink()
        raise RuntimeError(f"{path}: {len(other)} tensors are not those of the network, such as {other[0]}")
