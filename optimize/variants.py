"""One checkpoint to the variants of a bundle: its float file, and the INT8 files of one set of scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from configs.quantize import QuantizeConfig
from data.calibration import choose_images
from deploy.bundle import Variant, file_sha256
from deploy.errors import LabError
from deploy.target import DLA_BACKEND, load_target
from optimize.dla import CACHE_NAME, DLA_NAME, LAYERS_NAME
from optimize.export import compare_onnx, export_onnx
from optimize.files import write_model
from optimize.int8 import Images, make_int8, plan_record
from optimize.precision import emulated, to_bf16, to_fp16, weight_only
from optimize.quantize import S8_NAME, U8_NAME, QuantizeRecord
from optimize.sensitivity import MixedPlan, format_plan
from optimize.targets import need_dla_files
from train.checkpoint import load_checkpoint, restore_model
from train.model import count_parameters
from train.structure import Structure, find_change, plain

_WORDS = {
    "channels": "pruned",
    "factors": "factorised",
    "masks": "sparse",
    "codebooks": "shared",
    "fake_quant": "qat",
}
_NUM_CHECKED = 256
_WRITERS = {"fp16": to_fp16, "bf16": to_bf16, "int8-weights": weight_only}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """A variant and its file, which the bundle copies."""

    variant: Variant
    model: Path
    same_as: str
    """The variant whose accuracy is its own: itself, or the other form of the same integers."""
    answers: Path | None = None
    """A file that computes what a device should answer, where ONNX Runtime cannot do so with `model`."""
    artefacts: Mapping[str, Path] = field(default_factory=dict)
    """Files that travel beside the model, by their role."""


def label_of(structure: Structure) -> str:
    """What the stages have made of a network, such as `pruned-qat`; empty where it is as it was trained."""
    kinds = [change["change"] for change in structure]
    return "-".join(dict.fromkeys(_WORDS[kind] for kind in kinds))


def distinct(labels: Sequence[str]) -> list[str]:
    """Numbered where one comes again: pruned, pruned-2."""
    found: list[str] = []
    for label in labels:
        again = labels[: len(found)].count(label) + 1
        found.append(label if again == 1 else f"{label}-{again}" if label else str(again))
    return found


def make_variants(
    path: Path, label: str, images: Images, config: QuantizeConfig, work: Path, say: Say
) -> list[Made]:
    """The variants of the checkpoint at `path`, their names beginning with `label`, their files in `work`.

    INT8 files stand there with `scales.json`. A network of quantisation-aware training is fitted to its INT8
    files, so it has these alone, but for the FP32 that others are held against. Raises LabError.
    """
    checkpoint = load_checkpoint(path)
    if checkpoint.input_spec != images.spec:
        raise LabError(
            f"{path} takes other images or has other classes than the first checkpoint: a bundle has one "
            "input; give checkpoints of one run"
        )
    model = restore_model(checkpoint)
    work.mkdir(parents=True, exist_ok=True)
    fp32 = work / "fp32.onnx"
    export_onnx(model, images.spec, fp32)
    checked = choose_images(images.splits.val, _NUM_CHECKED, config.seed)
    exported = compare_onnx(model, fp32, images.batches(checked))
    before = f"{label}: " if label else ""
    say(
        f"{before}exported: relative error {exported.relative_error:.1e} to torch, same class on "
        f"{exported.top1_agreement:.2%} of {exported.num_images} images"
    )
    source = {
        "checkpoint_sha256": file_sha256(path),
        "model": checkpoint.config.model.name,
        "step": checkpoint.progress.step,
        "structure": checkpoint.structure,
    }
    plain_variant = Variant(
        name=f"{label}-fp32" if label else "fp32",
        file="",
        precision="fp32",
        backend="onnxruntime",
        num_parameters=count_parameters(plain(model)),
        source=source,
        metrics={"export": asdict(exported)},
    )

    def variant(form: str, backend: str, metrics: dict[str, Any], **more: Any) -> Variant:
        name = f"{label}-{form}" if label else form
        precision = form.removesuffix("-cpu")
        return replace(
            plain_variant,
            name=name,
            precision=precision,
            backend=backend,
            source=source | more,
            metrics=metrics,
        )

    dla = need_dla_files([load_target(name) for name in config.targets])
    trained = find_change(checkpoint.structure, "fake_quant") is not None
    made = [] if trained and label else [Made(plain_variant, fp32, plain_variant.name)]
    for precision in ["int8"] if trained else config.precisions:
        if precision != "int8":
            file, write = work / f"{precision}.onnx", _WRITERS[precision]
            record = write(fp32, file, images.batches(checked))
            say(
                f"{before}{precision}: {record.bytes / record.fp32_bytes:.2f} of the bytes, "
                f"same class on {record.top1_agreement:.2%} of {record.num_images} images"
            )
            made.append(_half_or_weights(variant, precision, asdict(record), file))
            continue
        quantised, plan = make_int8(
            fp32, model, checkpoint.structure, images, config.calibration, config.gate, config.seed, work, dla
        )
        say(before + _told(quantised, plan))
        metrics = asdict(quantised) | ({"mixed": plan_record(plan)} if plan else {})
        dla_record = metrics.pop("dla")
        settings = asdict(config.calibration)
        cpu = variant("int8-cpu", "onnxruntime", metrics, calibration=settings)
        tensorrt = variant("int8", "tensorrt", metrics, calibration=settings)
        made += [Made(cpu, work / U8_NAME, cpu.name), Made(tensorrt, work / S8_NAME, cpu.name)]
        if dla:
            one = variant("dla", DLA_BACKEND, metrics | {"dla": dla_record}, calibration=settings)
            made.append(for_dla(replace(one, precision="int8"), cpu.name, work))
    return made


def for_dla(variant: Variant, same_as: str, work: Path) -> Made:
    """Of the files of `write_dla` in `work`. DLA computes with the scales of the INT8 files there, so it is
    expected to answer what they do."""
    artefacts = {"calibration_cache": work / CACHE_NAME, "layer_precisions": work / LAYERS_NAME}
    return Made(variant, work / DLA_NAME, same_as, work / S8_NAME, artefacts)


def _told(quantised: QuantizeRecord, plan: MixedPlan | None) -> str:
    lines = [
        f"quantised: {quantised.num_int8_convs} of {quantised.num_convs} convolutions in INT8, "
        f"{quantised.method} over {quantised.num_images} training images; the TensorRT and the CPU form "
        f"agree in every integer on {quantised.num_checked_images} images"
    ]
    if quantised.equalisation is not None:
        fidelity = quantised.equalisation.fidelity
        lines.append(
            f"equalised: {len(quantised.equalisation.pairs)} pairs of layers; the float network changed by "
            f"{fidelity.relative_error:.1e} on {fidelity.num_images} images that set no range"
        )
    if quantised.bias_correction is not None:
        before, after = quantised.bias_correction.before, quantised.bias_correction.after
        lines.append(
            f"biases corrected: relative error of the logits {before.relative_error:.3f} before, "
            f"{after.relative_error:.3f} after, on {before.num_images} images"
        )
    if quantised.dla is not None:
        lines.append(f"for DLA: {quantised.dla}")
    return "\n".join([*lines, *([format_plan(plan)] if plan else [])])


def _half_or_weights(
    variant: Callable[..., Variant], precision: str, metrics: dict[str, Any], file: Path
) -> Made:
    """FP16 and BF16 are for TensorRT: ONNX Runtime on a CPU computes the one in float32 and refuses the
    other, so what to expect of a device comes from a float32 network with their roundings."""
    if precision == "int8-weights":
        weights = variant(precision, "onnxruntime", metrics)
        return Made(weights, file, weights.name)
    half = variant(precision, "tensorrt", metrics)
    answers = file.with_suffix(".emulated.onnx")
    write_model(emulated(onnx.load(file)), answers)
    return Made(half, file, half.name, answers)
