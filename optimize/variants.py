"""One checkpoint to the variants of a bundle: its float file, and the INT8 files of one set of scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from configs.schema import CalibrationConfig
from data.calibration import choose_images
from deploy.bundle import Variant, file_sha256
from deploy.errors import LabError
from optimize.export import compare_onnx, export_onnx
from optimize.int8 import Images, make_int8
from optimize.quantize import S8_NAME, U8_NAME
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


@dataclass(frozen=True)
class Made:
    """A variant and its file, which the bundle copies."""

    variant: Variant
    model: Path
    same_as: str
    """The variant whose accuracy is its own: itself, or the other form of the same integers."""


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
    path: Path,
    label: str,
    images: Images,
    calibration: CalibrationConfig,
    seed: int,
    work: Path,
    say: Callable[[str], None],
) -> list[Made]:
    """The variants of the checkpoint at `path`, their names beginning with `label`, their files in `work`.

    Its INT8 files stand there with `scales.json`. A network of quantisation-aware training has no float
    variant: it was fitted to its INT8 file. Raises LabError.
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
    exported = compare_onnx(model, fp32, images.batches(choose_images(images.splits.val, _NUM_CHECKED, seed)))
    name = f"{label}: " if label else ""
    say(
        f"{name}exported: relative error {exported.relative_error:.1e} to torch, same class on "
        f"{exported.top1_agreement:.2%} of {exported.num_images} images"
    )
    made = make_int8(fp32, model, checkpoint.structure, images, calibration, seed, work)
    say(
        f"{name}quantised: {made.num_int8_convs} of {made.num_convs} convolutions in INT8, "
        f"{made.method} over {made.num_images} training images; the TensorRT and the CPU form "
        f"agree in every integer on {made.num_checked_images} images"
    )
    source = {
        "checkpoint_sha256": file_sha256(path),
        "model": checkpoint.config.model.name,
        "step": checkpoint.progress.step,
        "structure": checkpoint.structure,
    }
    to_int8 = {**source, "calibration": asdict(calibration)}
    count = count_parameters(plain(model))

    def named(form: str) -> str:
        return f"{label}-{form}" if label else form

    float32 = Variant(named("fp32"), "", "fp32", "onnxruntime", count, source, {"export": asdict(exported)})
    cpu = Variant(named("int8-cpu"), "", "int8", "onnxruntime", count, to_int8, asdict(made))
    tensorrt = replace(cpu, name=named("int8"), backend="tensorrt")
    variants = [Made(cpu, work / U8_NAME, cpu.name), Made(tensorrt, work / S8_NAME, cpu.name)]
    if find_change(checkpoint.structure, "fake_quant") is None:
        variants.insert(0, Made(float32, fp32, float32.name))
    return variants
