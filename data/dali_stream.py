"""The plan carried out by NVIDIA DALI: on the CPU, or with JPEGs decoded on the GPU where there is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from data.dali_ops import DTYPES, NDIM, PER_OP, apply_op, op_inputs
from data.fetch import is_plain
from data.loader import Batch, Decoding
from data.plan import BatchPlan, Plan
from data.reader import ReadAhead
from deploy.input_spec import InputSpec

Source = Callable[[], tuple[Any, ...]]
"""Called for each batch: what `_feed` returns."""
MILD = 2.0
"""Up to this factor a training crop is shrunk without a filter: every source pixel still counts. Evaluation
always filters."""


class DaliStream:
    """See `data.loader.Stream`.

    DALI is fed file names (or encoded images, where not all are plain local files) and windows and has no
    random state, so a position needs no snapshot of it: a pipeline that starts at any position gives the same
    stream. It runs `prefetch` batches ahead.
    """

    def __init__(self, plan: Plan, decoding: Decoding, position: int) -> None:
        self._plan = plan
        self._decoding = decoding
        by_name = all(map(is_plain, plan.index.paths))
        self._files = [np.frombuffer(path.encode(), np.uint8) for path in plan.index.paths] if by_name else []
        self._ahead = None if by_name else ReadAhead(plan, position, decoding.reader, decoding.prefetch)
        self._fed: deque[BatchPlan] = deque()
        self._next_fed = position
        device = decoding.device
        self._on_gpu = on_gpu = device.type == "cuda"
        images = _evaluation_images
        if plan.crop_first:
            images = partial(_training_images, num_ops=plan.num_ops, erases=plan.erases)
        self._pipeline: Any = images(
            self._feed,
            decoding.spec,
            by_name=by_name,
            on_gpu=on_gpu,
            layout="HWC" if decoding.channels_last else "CHW",
            batch_size=plan.batch_size,
            num_threads=decoding.threads,
            device_id=(device.index or 0) if on_gpu else None,
            prefetch_queue_depth=decoding.prefetch,
        )
        self._pipeline.build()

    def next(self) -> Batch:
        (images,) = self._pipeline.run()
        plan = self._fed.popleft()
        tensor = torch.utils.dlpack.from_dlpack(images.as_tensor())
        if self._decoding.channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        return Batch(tensor, torch.from_numpy(plan.labels).to(self._decoding.device, non_blocking=True))

    def close(self) -> None:
        self._pipeline = None  # it ends its threads
        if self._ahead is not None:
            self._ahead.close()

    def _feed(self) -> tuple[Any, ...]:
        if self._ahead is None:
            plan = self._plan.at(self._next_fed)
            self._next_fed += 1
            files = [self._files[row] for row in plan.rows]
        else:
            plan, contents = self._ahead.next()
            files = [np.frombuffer(content, np.uint8) for content in contents]
        self._fed.append(plan)
        start, shape = np.split(plan.windows.astype(np.int32), 2, axis=1)
        common = (
            files,
            np.ascontiguousarray(start),
            np.ascontiguousarray(shape),
            plan.resized.astype(np.float32),
        )
        if not self._plan.crop_first:
            return common
        train: tuple[Any, ...] = (*common, plan.flips.astype(np.int32))
        if not self._on_gpu:
            factor = plan.windows[:, 2:] / plan.resized
            matrix = np.zeros((len(plan.rows), 3, 3), np.float32)
            matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = factor[:, 1], factor[:, 0], 1.0
            train += (matrix, (factor <= MILD).all(axis=1))
        if self._plan.num_ops:
            train += op_inputs(plan)
        if self._plan.erases:
            train += tuple(
                np.ascontiguousarray(part) for part in np.split(plan.erased.astype(np.float32), 2, axis=1)
            )
        return train


_pipeline = partial(pipeline_def, exec_dynamic=True, enable_conditionals=True)
"""`exec_dynamic` gives every batch memory of its own, so none has to be copied."""


@_pipeline()  # type: ignore[untyped-decorator]  # DALI is untyped to us
def _training_images(
    source: Source,
    spec: InputSpec,
    *,
    by_name: bool,
    on_gpu: bool,
    layout: str,
    num_ops: int,
    erases: bool,
) -> Any:
    """Cut while decoding, resized in 8 bits, RandAugment, mirrored, normalised, erased: float32."""
    common = [types.UINT8, types.INT32, types.INT32, types.FLOAT, types.INT32]
    mildness = 0 if on_gpu else 2
    more = 2 if erases else 0
    files, start, shape, resized, flips, *drawn = fn.external_source(
        source,
        num_outputs=5 + mildness + PER_OP * num_ops + more,
        batch=True,
        dtype=[*common, *[types.FLOAT, types.BOOL][:mildness], *DTYPES * num_ops, *[types.FLOAT] * more],
        ndim=[1, 1, 1, 1, 0, *[2, 0][:mildness], *NDIM * num_ops, *[1] * more],
    )
    matrix, mild, *drawn = [None, None, *drawn] if on_gpu else drawn
    encoded = fn.io.file.read(files) if by_name else files
    images = fn.decoders.image_slice(
        encoded, start=start, shape=shape, axes=(0, 1), **_decoding(on_gpu, fancy=not on_gpu)
    )
    if on_gpu:
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR)
    elif mild:
        # OpenCV's bilinear sampling, at a sixth of the cost of DALI's own on the CPU.
        images = fn.experimental.warp_perspective(images, matrix, size=resized, border_mode="replicate")
    else:
        images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR)
    for at in range(0, PER_OP * num_ops, PER_OP):
        branch, value, warp = drawn[at : at + PER_OP]
        images = apply_op(images, branch, value, warp, on_gpu)
    images = _normalise(images, spec, layout, flips)
    if erases:
        anchor, extent = drawn[-2:]
        images = fn.erase(images, anchor=anchor, shape=extent, axis_names="HW", fill_value=0.0)
    return images


@_pipeline()  # type: ignore[untyped-decorator]  # as above
def _evaluation_images(source: Source, spec: InputSpec, *, by_name: bool, on_gpu: bool, layout: str) -> Any:
    """By the rule of the InputSpec: resized in floating point, not rounded, cut, normalised: float32."""
    files, start, shape, resized = fn.external_source(
        source,
        num_outputs=4,
        batch=True,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT],
        ndim=[1, 1, 1, 1],
    )
    images = fn.decoders.image(fn.io.file.read(files) if by_name else files, **_decoding(on_gpu, fancy=True))
    images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, dtype=types.FLOAT)
    images = fn.slice(images, start=start, shape=shape, axes=(0, 1))
    return _normalise(images, spec, layout, 0)


def _decoding(on_gpu: bool, *, fancy: bool) -> dict[str, Any]:
    """fancy: libjpeg-turbo's upsampling of the colours, so that all decoders agree.

    On the GPU it is not to be had for a part of an image: nvJPEG before 13.2 leaves such images to the CPU,
    and torchvision brings such an nvJPEG, which is taken for DALI's own once torchvision is imported.
    """
    device = "mixed" if on_gpu else "cpu"
    return {"device": device, "output_type": types.RGB, "jpeg_fancy_upsampling": fancy}


def _normalise(images: Any, spec: InputSpec, layout: str, flips: Any) -> Any:
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout=layout,
        mean=[255 * value for value in spec.mean],
        std=[255 * value for value in spec.std],
        mirror=flips,
    )
