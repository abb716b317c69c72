"""`python -m scripts.quantize_and_benchmark checkpoint=RUN/checkpoint.pt`: from a checkpoint to a table.

Export to ONNX, quantise to INT8, pack the bundle, verify it, measure every variant, write the report.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from configs.load import run_command
from configs.schema import QuantizeConfig
from deploy.errors import LabError


def main(config: QuantizeConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: a mistake in the config is told before that.
    from data.calibration import choose_images, image_batches
    from data.reader import local_copies, reader_of
    from deploy.bench import bench
    from deploy.bundle import Variant, file_sha256
    from deploy.results import append_measurements
    from deploy.table import format_table
    from deploy.verify import verify
    from optimize.bundle import build_bundle
    from optimize.export import compare_onnx, export_onnx
    from optimize.qat_scales import trained_scales
    from optimize.quantize import S8_NAME, SCALES_NAME, U8_NAME, quantize_onnx
    from scripts.report import write_report
    from train.checkpoint import load_checkpoint, restore_model
    from train.images import images_of
    from train.model import count_parameters

    path = Path(config.checkpoint)
    checkpoint = load_checkpoint(path)
    model = restore_model(checkpoint)
    trained = checkpoint.config
    out = Path(config.out) if config.out else path.parent
    data, splits = images_of(checkpoint, out / "data", config.data_root, say)
    spec = checkpoint.input_spec

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # The device's code, which measures here, reads whole files.
        val = local_copies(splits.val, reader_of(data, splits.val), work / "val")
        fp32 = work / "fp32.onnx"
        export_onnx(model, spec, fp32)
        checked = choose_images(val, 256, config.seed)
        exported = compare_onnx(model, fp32, image_batches(checked, spec, trained.loader, data))
        say(
            f"exported: relative error {exported.relative_error:.1e} to torch, same class on "
            f"{exported.top1_agreement:.2%} of {exported.num_images} images"
        )
        calibration = config.calibration
        images = choose_images(
            splits.train, calibration.num_images, config.seed, balanced=calibration.balanced
        )
        if len(set(images.labels.tolist())) == 1:
            say(f"warning: the {len(images)} calibration images are all of one class; take more of them")
        some = next(image_batches(checked, spec, trained.loader, data))[:2]
        scales = trained_scales(model, checkpoint.structure, fp32, some)
        if scales is not None:
            say("the scales are those of quantisation-aware training; calibration.method is not used")
        quantized = quantize_onnx(
            fp32,
            image_batches(images, spec, trained.loader, data),
            work,
            calibration.method,
            calibration.percentile,
            scales,
        )
        say(
            f"quantised: {quantized.num_int8_convs} of {quantized.num_convs} convolutions in INT8, "
            f"{quantized.method} over {quantized.num_images} training images; the TensorRT and the CPU form "
            f"agree in every integer on {quantized.num_checked_images} images"
        )
        source = {
            "checkpoint_sha256": file_sha256(path),
            "model": trained.model.name,
            "step": checkpoint.progress.step,
            "structure": checkpoint.structure,
        }
        to_int8 = {**source, "calibration": asdict(config.calibration)}
        count = count_parameters(model)
        variants = [
            Variant("fp32", "", "fp32", "onnxruntime", count, source, {"export": asdict(exported)}),
            Variant("int8-cpu", "", "int8", "onnxruntime", count, to_int8, asdict(quantized)),
            Variant("int8", "", "int8", "tensorrt", count, to_int8, asdict(quantized)),
        ]
        pack = partial(
            build_bundle,
            name=trained.name,
            spec=spec,
            models={"fp32": fp32, "int8-cpu": work / U8_NAME, "int8": work / S8_NAME},
            samples=choose_images(val, config.num_samples, config.seed),
            commands=[shlex.join(["python", "-m", "scripts.quantize_and_benchmark", *overrides])],
        )
        # Measured here first, so that an older good bundle is only replaced by one that verifies.
        draft = pack(work / "bundle", variants=variants)
        verified = verify(draft.root)
        say(str(verified))
        if not verified.ok:
            raise LabError("the new bundle does not verify on this machine: see the FAIL above")
        measurements = bench(
            draft,
            threads=config.bench.threads,
            batches=config.bench.batches,
            seconds=config.bench.seconds,
            images=[(Path(p), int(label)) for p, label in zip(val.paths, val.labels, strict=True)],
        )
        accuracy = {
            m.variant: {"top1": m.accuracy.top1, "num_images": m.accuracy.num_images} for m in measurements
        }
        bundle = pack(
            out / "bundle",
            variants=[replace(v, metrics=v.metrics | accuracy.get(v.name, {})) for v in variants],
        )
        shutil.copyfile(work / SCALES_NAME, out / SCALES_NAME)
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    append_measurements(results, measurements)
    report = write_report([out])
    print(f"\n{format_table(measurements)}\n\nbundle: {bundle.root}\nreport: {report}")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command("quantize_and_benchmark", QuantizeConfig, main)
