"""A float file and training images to INT8 files: by calibration, or by the scales of trained quantisers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from configs.schema import CalibrationConfig, DataConfig, LoaderConfig
from data.calibration import choose_images, image_batches
from data.index import Index
from data.prepare import Splits
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize.export import export_onnx
from optimize.qat_scales import trained_scales
from optimize.quantize import QuantizeRecord, quantize_onnx
from optimize.stage import Context
from train.checkpoint import NAME, load_checkpoint, restore_model
from train.structure import Structure


@dataclass(frozen=True)
class Images:
    """The images of a checkpoint's run, and how a network takes them."""

    spec: InputSpec
    data: DataConfig
    loader: LoaderConfig
    splits: Splits

    def batches(self, images: Index) -> Iterator[npt.NDArray[np.float32]]:
        return image_batches(images, self.spec, self.loader, self.data)


def calibration_images(train: Index, config: CalibrationConfig, seed: int) -> Index:
    """Raises LabError where they are all of one class."""
    images = choose_images(train, config.num_images, seed, balanced=config.balanced)
    if len(set(images.labels.tolist())) == 1:
        raise LabError(
            f"calibration.num_images={config.num_images}: the {len(images)} images are all of one class, "
            "whose ranges are not the network's; take as many as there are classes, 512 are usual"
        )
    return images


def make_int8(
    fp32: Path,
    model: nn.Module,
    structure: Structure,
    images: Images,
    config: CalibrationConfig,
    seed: int,
    out: Path,
) -> QuantizeRecord:
    """The files of `quantize_onnx` in `out`, of the network whose float file is `fp32`.

    Where it has fake quantisers, their scales stand in the place of calibration. Raises LabError.
    """
    chosen = calibration_images(images.splits.train, config, seed)
    scales = trained_scales(model, structure, fp32, next(images.batches(chosen))[:2])
    return quantize_onnx(fp32, images.batches(chosen), out, config.method, config.percentile, scales)


def quantize_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. The checkpoint stays as it is; the INT8 files stand beside it."""
    checkpoint = load_checkpoint(source)
    model = restore_model(checkpoint)
    fp32 = folder / "fp32.onnx"
    export_onnx(model, context.spec, fp32)
    images = Images(context.spec, context.data, context.loader, context.splits)
    config = context.config
    record = make_int8(fp32, model, checkpoint.structure, images, config.calibration, config.seed, folder)
    shutil.copyfile(source, folder / NAME)
    return asdict(record)
