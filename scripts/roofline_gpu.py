"""A tiled matrix product in Triton against cuBLAS, and the rate of a copy, on the GPU that torch sees.

Imported without Triton too, which comes with torch's CUDA wheels: the kernel is made when it is first called.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from deploy.errors import LabError
from deploy.table import aligned

SIZES = (512, 1024, 2048, 4096, 8192)
COPY_MIB = (16, 64, 256, 1024)
SLEEP_CYCLES = 1_000_000
"""Half a millisecond or so."""
GROUP = 8
"""Rows of tiles that run side by side, so that they share columns in the L2 cache."""
TILES = (
    (64, 64, 32, 4, 3), (128, 64, 32, 4, 4), (128, 128, 32, 8, 3), (128, 256, 64, 8, 3),
    (64, 64, 64, 4, 4), (64, 128, 64, 4, 4), (128, 128, 64, 4, 4), (128, 128, 64, 8, 4), (256, 128, 64, 8, 3),
)  # fmt: skip
"""Rows, columns and depth of a tile, warps, stages: Triton times them and keeps the fastest for each size."""


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[m, k] x [k, n] -> [m, n] in the inputs' type, float16 or bfloat16, summed in float32.

    Any sizes and strides. Raises LabError where Triton is not installed, and for tensors that are not such
    matrices on one GPU.
    """
    types = (torch.float16, torch.bfloat16)
    if a.dtype not in types or a.dtype != b.dtype or not a.is_cuda or a.device != b.device:
        raise LabError(
            f"matmul of {a.dtype} on {a.device} and {b.dtype} on {b.device}: both must be float16 or both "
            "bfloat16, on one GPU"
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise LabError(f"matmul of {list(a.shape)} and {list(b.shape)}: must be [m, k] and [k, n]")
    (m, k), n = a.shape, b.shape[1]
    out = torch.empty((m, n), dtype=a.dtype, device=a.device)
    kernel, blocks = _kernel()
    with torch.cuda.device(a.device):
        kernel[lambda meta: (blocks(m, meta["BLOCK_M"]) * blocks(n, meta["BLOCK_N"]),)](
            a, b, out, m, n, k, *a.stride(), *b.stride(), *out.stride(), GROUP=GROUP
        )
    return out


@cache
def _kernel() -> tuple[Any, Callable[[int, int], int]]:
    try:
        # Triton ships no types, and with torch for a CPU it is not there at all.
        import triton  # type: ignore[import-untyped,unused-ignore]
        import triton.language as tl  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise LabError("the tiled product needs Triton, which comes with torch's CUDA wheels") from error

    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}, num_warps=warps, num_stages=stages)
        for m, n, k, warps, stages in TILES
    ]

    @triton.autotune(configs=configs, key=["m", "n", "k"])  # type: ignore[untyped-decorator,unused-ignore]
    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def tiled_matmul(  # type: ignore[no-untyped-def]
        a_ptr, b_ptr, out_ptr, m, n, k, a_row, a_col, b_row, b_col, out_row, out_col,
        BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        pid = tl.program_id(0)
        rows_of_tiles, columns_of_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
        in_group = GROUP * columns_of_tiles
        first = pid // in_group * GROUP
        height = min(rows_of_tiles - first, GROUP)
        tile_row = first + pid % in_group % height
        tile_column = pid % in_group // height
        # Offsets of 64 bits: a matrix may hold more than 2^31 values.
        rows = (tile_row * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
        columns = (tile_column * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        steps = tl.arange(0, BLOCK_K)
        a_tile = a_ptr + rows[:, None] * a_row + steps[None, :] * a_col
        b_tile = b_ptr + steps[:, None] * b_row + columns[None, :] * b_col
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in range(0, tl.cdiv(k, BLOCK_K)):  # noqa: PIE808  # Triton wants both
            left = k - start * BLOCK_K
            a = tl.load(a_tile, mask=(rows[:, None] < m) & (steps[None, :] < left), other=0.0)
            b = tl.load(b_tile, mask=(steps[:, None] < left) & (columns[None, :] < n), other=0.0)
            total = tl.dot(a, b, total)
            a_tile += BLOCK_K * a_col
            b_tile += BLOCK_K * b_row
        place = out_ptr + rows[:, None] * out_row + columns[None, :] * out_col
        inside = (rows[:, None] < m) & (columns[None, :] < n)
        tl.store(place, total.to(out_ptr.dtype.element_ty), mask=inside)

    return tiled_matmul, triton.cdiv


def milliseconds(call: Callable[[], object], rounds: int = 20) -> float:
    """The median of events around one call each, after three untimed ones.

    The GPU sleeps before each, so that the call is queued by the time it starts: kernels are compared, not
    how long Python takes to launch one.
    """
    for _ in range(3):
        call()
    found = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        found.append(float(start.elapsed_time(end)))
    return statistics.median(found)


def report() -> str:
    """Products of squares by size and type, ours over cuBLAS, and copies by size."""
    head = ["type", "size", "Triton TFLOP/s", "cuBLAS TFLOP/s", "ours/cuBLAS"]
    cells = [head]
    for kind in (torch.float16, torch.bfloat16):
        for size in SIZES:
            a, b = (torch.randn(size, size, device="cuda").to(kind) for _ in range(2))
            ours, theirs = milliseconds(partial(matmul, a, b)), milliseconds(partial(torch.matmul, a, b))
            flops = 2 * size**3 / 1e9
            cells.append(
                [
                    str(kind).removeprefix("torch."),
                    str(size),
                    f"{flops / ours:.1f}",
                    f"{flops / theirs:.1f}",
                    f"{theirs / ours:.2f}",
                ]
            )
    copies = [["MiB read and written", "GB/s"]]
    for mib in COPY_MIB:
        source = torch.empty(mib * 2**19, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        spent = milliseconds(partial(target.copy_, source))
        copies.append([str(mib), f"{mib * 2**20 / spent / 1e6:.0f}"])
    name = torch.cuda.get_device_name()
    return "\n".join(["", name, *aligned(cells, "<>>>>"), "", *aligned(copies, ">>")])
