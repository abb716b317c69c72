"""What every stage of compression is given, and the record of what it left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from configs.compress import LatencyConfig, OptimizeConfig
from configs.images import DataConfig, LoaderConfig
from data.calibration import labelled_batches
from data.index import Index
from data.prepare import Splits
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.measure import measure_latency, percentile
from deploy.ort import session_options
from optimize.export import INPUT_NAME, export_onnx
from optimize.quantize import U8_NAME
from optimize.shared_weights import write_shared_weights
from train.checkpoint import Checkpoint, Progress, load_checkpoint, restore_model, save_checkpoint
from train.codebooks import codebooks
from train.metrics import EvalCounts
from train.model import count_parameters
from train.structure import Structure, plain

SHARED = "weights.shared"
_NUMPY = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
ROUNDS = 5
"""Turns of the networks whose latency is compared."""


@dataclass(frozen=True)
class Context:
    """What the stages of one chain have in common."""

    config: OptimizeConfig
    original: Path
    """The checkpoint that the chain began with."""
    spec: InputSpec
    data: DataConfig
    loader: LoaderConfig
    splits: Splits


Network = Callable[[torch.Tensor], torch.Tensor]
"""float32 [n, 3, size, size] -> logits float32 [n, num_classes]."""

Stage = Callable[[Path, Path, Context], dict[str, Any]]
"""(checkpoint, folder, context) -> what is particular to this stage; leaves `checkpoint.pt` in the folder."""


@dataclass(frozen=True)
class StageRecord:
    """What a stage left, measured. `drop` and `speedup` are against the chain's first checkpoint."""

    stage: str
    settings: dict[str, Any]
    source_sha256: str
    """Of the checkpoint that it began with."""
    parameters: int
    macs: int
    """Multiply-accumulates of one image."""
    onnx_bytes: int
    """Of the stage's file: FP32, but INT8 for a CPU where the stage left one."""
    top1: float
    """Share in 0..1 of `num_images` validation images: of the network in torch, or of the INT8 file in ONNX
    Runtime."""
    num_images: int
    drop: float
    """Points of top-1 lost."""
    latency_ms: float | None
    """p50 at batch 1 of that file in ONNX Runtime, measured in turns with the first one's FP32 file."""
    speedup: float | None
    found: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> StageRecord | None:
        """None where there is none."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise LabError(
                f"{path} is no record of a stage ({error}): remove its folder, and the stage runs again"
            ) from error


def file_of(stage: str) -> str:
    """The file that a stage is measured by."""
    return U8_NAME if stage == "quantize" else "fp32.onnx"


def save_changed(
    folder: Path, source: Checkpoint, model: nn.Module, structure: Structure, name: str = "checkpoint.pt"
) -> None:
    """The network of `source` as a stage has changed it, as a checkpoint that a training can start from.

    Raises LabError where it holds a value that is not finite.
    """
    require_finite(model, "after this stage")
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        folder / name,
        replace(
            source,
            structure=list(structure),
            scaler={},
            loader={"position": 0, "num_steps": 0},
            progress=Progress(),
            metrics={},
            model=model.state_dict(),
            ema=None,
            optimizer={},
        ),
    )


def require_finite(model: nn.Module, when: str) -> None:
    """Raises LabError where a tensor of the network is not finite."""
    bad = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise LabError(f"{len(bad)} tensors are not finite {when}, such as {bad[0]}: nothing is saved")


def require_plain(model: nn.Module, stage: str) -> None:
    """Raises LabError where weights of the network are computed from others, which `stage` cannot change."""
    computed = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    if computed:
        raise LabError(
            f"{stage} changes weights, but those of {len(computed)} layers, such as {computed[0]}, are "
            f"computed from others since an earlier stage, such as cluster: give {stage} before it, as in "
            "stages=[prune,factorise,cluster,finetune]"
        )


def measure_stage(
    stage: str,
    settings: dict[str, Any],
    source_sha256: str,
    folder: Path,
    context: Context,
    first: StageRecord | None,
    found: dict[str, Any],
) -> StageRecord:
    """The record of the checkpoint in `folder`, beside whose weights its FP32 file is left, unless the stage
    has left an INT8 file."""
    restored = restore_model(load_checkpoint(folder / "checkpoint.pt" if first else context.original))
    model = plain(restored)
    int8 = stage == "quantize"
    file = folder / file_of(stage)
    if not int8:
        export_onnx(model, context.spec, file)
    if codebooks(restored) and not int8:
        shared = write_shared_weights(restored, file, folder / SHARED, context.config.cluster.deflate)
        found = found | {"shared_weights": asdict(shared)}
    in_torch = model.to(memory_format=torch.channels_last).eval()
    network = as_network(file, context.config.latency) if int8 else in_torch
    top1, num_images = evaluate(network, context.splits.val, context)
    # The first one's file stands beside the stages' folders.
    files = [folder.parent / "0-original" / "fp32.onnx", file] if first else [file]
    times = compare_latency(files, context.spec, context.config.latency)
    return StageRecord(
        stage=stage,
        settings=settings,
        source_sha256=source_sha256,
        parameters=count_parameters(model),
        macs=count_macs(model, context.spec.size),
        onnx_bytes=file.stat().st_size,
        top1=top1,
        num_images=num_images,
        drop=100 * (first.top1 - top1) if first else 0.0,
        latency_ms=times[-1] if times else None,
        speedup=times[0] / times[-1] if times else None,
        found=found,
    )


def count_macs(model: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def evaluate(network: Network, images: Index, context: Context) -> tuple[float, int]:
    """Top-1 as a share, and of how many images."""
    counts = EvalCounts(context.spec.num_classes, torch.device("cpu"))
    for batch, labels in labelled_batches(images, context.spec, context.loader, context.data, "top-1"):
        counts.add(network(batch), labels)
    result = counts.result()
    return result.top1, result.num_images


def as_network(file: Path, config: LatencyConfig) -> Network:
    session = open_session(str(file), config.threads)
    return lambda images: torch.from_numpy(session.run(None, {INPUT_NAME: images.numpy()})[0])


def open_session(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    """As `deploy` opens a file, or its content, on this CPU."""
    options = session_options(onnxruntime, threads, emulate=False)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compare_latency(files: Sequence[Path], spec: InputSpec, config: LatencyConfig) -> list[float]:
    """p50 in ms at batch 1 of each, in turns; empty where `config` has it off."""
    if not config.seconds:
        return []
    image = np.zeros((1, 3, spec.size, spec.size), np.float32)
    return time_in_turns([str(file) for file in files], image, config)


def time_in_turns(
    models: Sequence[str | bytes], image: npt.NDArray[np.float32], config: LatencyConfig
) -> list[float]:
    """p50 in ms of each, files or their contents, on the same input in ONNX Runtime, opened as a runner does.

    A network that takes other numbers than float32 gets `image` as these.
    """
    sessions = [open_session(model, config.threads) for model in models]
    inputs = [session.get_inputs()[0] for session in sessions]
    feeds = [{i.name: image.astype(_NUMPY[i.type], copy=False)} for i in inputs]
    samples: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for session, feed, times in zip(sessions, feeds, samples, strict=True):
            times += measure_latency(
                partial(session.run, None, feed),
                warmup_s=config.seconds / ROUNDS / 4,
                min_duration_s=config.seconds / ROUNDS,
                min_count=5,
            )
    return [percentile(times, 50) for times in samples]
