"""A float file and training images to INT8 files: by calibration, or by the scales of trained quantisers."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from configs.compress import LatencyConfig
from configs.images import DataConfig, LoaderConfig
from configs.quantize import CalibrationConfig, GateConfig
from data.calibration import choose_images, image_batches, labelled_batches
from data.index import Index
from data.prepare import Splits
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize.calibrate import Scales
from optimize.fidelity import compare_logits, session_logits
from optimize.qat_scales import trained_scales
from optimize.quantize import U8_NAME, QuantizeRecord, quantize_onnx
from optimize.sensitivity import MixedPlan, plan_mixed
from optimize.stage import Context, open_session
from train.checkpoint import NAME, load_checkpoint, restore_model
from train.structure import Structure

NUM_RANKED = 64
"""Calibration images on which the cost of each layer is measured."""
NUM_GATED = 1024
"""Validation images on which a mixture of INT8 and float has to pass the gate."""
NUM_COMPARED = 512
"""Validation images on which the logits of the INT8 file are held against those of the float file."""


@dataclass(frozen=True)
class Images:
    """The images of a checkpoint's run, and how a network takes them."""

    spec: InputSpec
    data: DataConfig
    loader: LoaderConfig
    splits: Splits

    def batches(self, images: Index, label: str = "images") -> Iterator[npt.NDArray[np.float32]]:
        return image_batches(images, self.spec, self.loader, self.data, label)

    def labelled(self, images: Index) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
        """All of them, in memory."""
        batches = labelled_batches(images, self.spec, self.loader, self.data)
        return [(found.numpy(), labels.numpy()) for found, labels in batches]


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
    gate: GateConfig,
    seed: int,
    out: Path,
    dla: bool = False,
) -> tuple[QuantizeRecord, MixedPlan | None]:
    """The files of `quantize_onnx` in `out`, of the network whose float file is `fp32`.

    Where it has fake quantisers, their scales stand in the place of calibration, and nothing is equalised or
    corrected: it was trained as it is. Raises LabError.
    """
    chosen = calibration_images(images.splits.train, config, seed)
    scales = trained_scales(model, structure, fp32, next(images.batches(chosen))[:2])
    plan: MixedPlan | None = None

    def keep_float(source: Path, found: Scales) -> Set[str]:
        nonlocal plan
        ranked = images.labelled(choose_images(chosen, NUM_RANKED, seed))
        gated = images.labelled(choose_images(images.splits.val, NUM_GATED, seed))
        plan = plan_mixed(source, found, ranked, gated, gate.max_drop, LatencyConfig(1, 0.1))
        return frozenset(plan.keep_float)

    trained = scales is not None
    record = quantize_onnx(
        fp32,
        images.batches(chosen),
        out,
        config.method,
        config.percentile,
        scales=scales,
        equalise=config.equalise and not trained,
        correct=config.correct_biases and not trained,
        keep_float=keep_float if config.mixed else None,
        dla=dla,
    )
    return record, plan


def quantize_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. The checkpoint stays as it is; the INT8 files stand beside it."""
    checkpoint = load_checkpoint(source)
    model = restore_model(checkpoint)
    before = folder.parent / "0-original" if source == context.original else source.parent
    fp32 = Path(shutil.copyfile(before / "fp32.onnx", folder / "fp32.onnx"))
    images = Images(context.spec, context.data, context.loader, context.splits)
    config = context.config
    record, plan = make_int8(
        fp32, model, checkpoint.structure, images, config.calibration, config.gate, config.seed, folder
    )
    shutil.copyfile(source, folder / NAME)
    threads = config.latency.threads
    agreement = compare_logits(
        session_logits(open_session(str(fp32), threads)),
        session_logits(open_session(str(folder / U8_NAME), threads)),
        images.batches(choose_images(images.splits.val, NUM_COMPARED, config.seed), "agreement"),
    )
    found = asdict(record) | {"agreement": agreement.as_record()}
    return found | ({"mixed": plan_record(plan)} if plan else {})


def plan_record(plan: MixedPlan) -> dict[str, Any]:
    """Without the infinities that JSON does not know: a layer that changes nothing has an SNR of None."""
    found = asdict(plan)
    for layer in found["order"]:
        layer["snr_db"] = layer["snr_db"] if math.isfinite(layer["snr_db"]) else None
    return found
