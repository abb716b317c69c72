"""In which type the network computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from deploy.errors import LabError


def choose_precision(wanted: str, device: torch.device) -> str:
    """fp32, bf16 or fp16. Raises LabError for fp16 without a GPU."""
    on_gpu = device.type == "cuda"
    if wanted == "fp16" and not on_gpu:
        raise LabError("precision=fp16 needs a GPU: use precision=bf16 or fp32 on a CPU")
    if wanted != "auto":
        return wanted
    # Without native bf16 a CPU emulates it, at several times the cost of fp32.
    native = torch.cuda.is_bf16_supported() if on_gpu else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return "bf16" if native else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, dtypes[precision]) if precision in dtypes else nullcontext()
