"""Quantisation-aware training: fake quantisers where the INT8 file will round, and training with them."""

from __future__ import annotations

import operator
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F
from torch import fx, nn

from configs.quantize import CalibrationConfig
from data.calibration import choose_images, image_batches
from data.index import Index
from deploy.errors import LabError
from optimize.calibrate import LEVELS, Histogram
from optimize.export import export_onnx
from optimize.fidelity import Fidelity, compare_logits, plain_session, session_logits
from optimize.finetune import finetune_config, train
from optimize.int8 import calibration_images
from optimize.qat_scales import round_biases, trained_scales
from optimize.qdq import emit
from optimize.stage import Context, save_changed
from train.checkpoint import NAME, load_checkpoint, restore_model, save_checkpoint
from train.fake_quant import INPUT, OUTPUT, quantiser, set_active
from train.monitor import log
from train.saves import saved_structure
from train.structure import Change, apply_change, find_change

START = "start.pt"
"""In the stage's folder: the calibrated network that its training begins with."""
MIN_AGREEMENT = 0.995
_ADDITIONS: tuple[Any, ...] = (torch.add, operator.add, operator.iadd)
_POOLS: tuple[Any, ...] = (F.adaptive_avg_pool2d,)
_WEIGHTED = (nn.Conv2d, nn.Linear)
_PASS_ON = (nn.Dropout, nn.Identity)
"""They are not in the file: the tensor before them is quantised."""


def fake_quant_of(model: nn.Module, momentum: float, calibration: CalibrationConfig) -> Change:
    """The change that puts fake quantisers where `optimize.qdq_placement` quantises the file of the network.

    Raises LabError where a tensor is not a module's own.
    """
    graph = fx.Tracer().trace(model)
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    weights = [name for name in calls if isinstance(modules[str(name)], _WEIGHTED)]
    wanted = {_origin(n, modules) for node in graph.nodes for n in _quantised_inputs(node, modules)}
    # In the order in which the network makes them, which is the file's.
    activations = [list(_place(node, modules, calls)) for node in graph.nodes if node in wanted]
    return {
        "change": "fake_quant",
        "activations": activations,
        "weights": weights,
        "momentum": momentum,
        "calibration": asdict(calibration),
    }


@torch.no_grad()
def calibrate_quantisers(
    model: nn.Module,
    activations: Iterable[tuple[str, str]],
    batches: Iterable[npt.NDArray[np.float32]],
    config: CalibrationConfig,
) -> None:
    """Set the scales in place, as `optimize.calibrate` does, from the network with float activations.

    Raises LabError for no images, and for a tensor with NaN or infinity.
    """
    histograms: dict[nn.Module, tuple[str, Histogram]] = {}

    def look(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        name, histogram = histograms[module]
        if not inputs[0].isfinite().all():
            raise LabError(
                f"calibration: the tensor at {name} holds NaN or infinity; check the checkpoint "
                "and the input images"
            )
        histogram.add(inputs[0].numpy())

    for name, side in activations:
        histograms[quantiser(model, name, side)] = (f"{name}.{side}", Histogram())
    hooks = [module.register_forward_pre_hook(look) for module in histograms]
    set_active(model, False)
    num_images = 0
    for batch in batches:
        model.eval()(torch.from_numpy(batch))
        num_images += len(batch)
    if num_images == 0:
        raise LabError("calibration: 0 images, at least 1 is needed and 512 are usual; check the data split")
    for module, (_, histogram) in histograms.items():
        module.get_buffer("scale").fill_(histogram.amax(config.method, config.percentile) / LEVELS)
    set_active(model, True)
    for hook in hooks:
        hook.remove()


def qat_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. Killed, it goes on from its last checkpoint, bit for bit."""
    config, calibration = context.config.qat, context.config.calibration
    start = folder / START
    checkpoint = load_checkpoint(source)
    if find_change(checkpoint.structure, "codebooks") is not None:
        raise LabError(
            f"qat: {source} has weights that share values since the stage cluster, which the INT8 file would "
            "round again: give one of the two"
        )
    model = restore_model(checkpoint)
    change = fake_quant_of(model, config.momentum, calibration)
    begun = saved_structure(folder)
    if begun and begun[-1] != change:
        raise LabError(
            f"{folder} was begun with other settings of qat.momentum or calibration: give another "
            "out=..., or remove it"
        )
    if not begun:
        images = calibration_images(context.splits.train, calibration, context.config.seed)
        apply_change(model, change)
        batches = _batches(images, context, "calibration")
        calibrate_quantisers(model, change["activations"], batches, calibration)
        save_changed(folder, checkpoint, model, [*checkpoint.structure, change], START)
    metrics = train(finetune_config(start, folder, context, config.training), folder)
    agreement = _settle(folder / NAME, context)
    if agreement["top1_agreement"] < MIN_AGREEMENT:
        log.warning(
            "the network in torch and its INT8 file name the same class on %.2f %% of %d images; of a "
            "trained network %.1f %% are usual",
            100 * agreement["top1_agreement"], agreement["num_images"], 100 * MIN_AGREEMENT,
        )  # fmt: skip
    return {
        "num_activations": len(change["activations"]),
        "num_weights": len(change["weights"]),
        "training": metrics,
        "agreement": agreement,
    }


def _settle(path: Path, context: Context) -> dict[str, Any]:
    """Give a trained checkpoint the biases of its INT8 file; how far the two agree on validation images."""
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint)
    images = choose_images(context.splits.val, context.config.qat.num_checked, context.config.seed)
    first = next(_batches(images, context, "images"))[:2]
    with tempfile.TemporaryDirectory() as work:
        fp32 = Path(work, "fp32.onnx")
        export_onnx(model, context.spec, fp32)
        scales = trained_scales(model, checkpoint.structure, fp32, first)
        assert scales is not None, "the stage has put fake quantisers in"
        s8 = emit(onnx.load(fp32), scales, "s8")
    round_biases(model, s8)
    weights = model.state_dict()
    average = checkpoint.ema is not None
    settled = replace(checkpoint, ema=weights) if average else replace(checkpoint, model=weights)
    save_checkpoint(path, settled)
    return agreement_with_torch(model, s8, _batches(images, context, "agreement")).as_record()


@torch.no_grad()
def agreement_with_torch(
    model: nn.Module, s8: onnx.ModelProto, batches: Iterable[npt.NDArray[np.float32]]
) -> Fidelity:
    """Of the network with its fake quantisers, and its S8 file in ONNX Runtime, unoptimised."""
    network = model.eval()
    return compare_logits(
        lambda batch: network(torch.from_numpy(batch)).numpy(), session_logits(plain_session(s8)), batches
    )


def _batches(images: Index, context: Context, label: str) -> Iterator[npt.NDArray[np.float32]]:
    return image_batches(images, context.spec, context.loader, context.data, label)


def _quantised_inputs(node: fx.Node, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """The rule of `optimize.qdq_placement.quantised_tensors`, in torch's words."""
    if node.op == "call_module":
        kinds = (*_WEIGHTED, nn.AdaptiveAvgPool2d)
        return list(node.all_input_nodes) if isinstance(modules[str(node.target)], kinds) else []
    if node.op == "call_function" and node.target in _POOLS:
        return node.all_input_nodes[:1]
    if node.op == "call_function" and node.target in _ADDITIONS and len(node.all_input_nodes) == 2:
        return list(node.all_input_nodes)
    return []


def _origin(node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    while node.op == "call_module" and isinstance(modules[str(node.target)], _PASS_ON):
        node = node.all_input_nodes[0]
    return node


def _place(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[Any]) -> tuple[str, str]:
    """(module, side) at which nothing but this tensor passes, and behind which all its readers are."""
    readers = list(node.users)
    if len(readers) == 1 and readers[0].op == "call_module" and calls[readers[0].target] == 1:
        return str(readers[0].target), INPUT
    if node.op == "call_module" and calls[node.target] == 1:
        return str(node.target), OUTPUT
    # What a block returns, such as a sum behind a ReLU that is called twice.
    around = [_stack(reader) for reader in readers]
    for name in reversed(_stack(node)):
        # Not the module that made it, which makes others too, nor one that would call a quantiser as a part.
        if name == node.target or isinstance(modules[name], nn.Sequential):
            continue
        if not any(name in stack for stack in around):
            return name, OUTPUT
    raise LabError(
        f"the tensor {node.name!r} of the network is neither one module's input nor one's output, so that it "
        "cannot be quantised in training: quantise the checkpoint without the stage qat"
    )


def _stack(node: fx.Node) -> list[str]:
    """The modules that a tensor is made in, from the outside to the inside."""
    return [path for path, _ in node.meta["nn_module_stack"].values() if path]
