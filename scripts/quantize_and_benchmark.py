"""`python -m scripts.quantize_and_benchmark checkpoint=RUN/checkpoint.pt`: from a checkpoint to a table.

Export to ONNX, quantise to INT8, pack the bundle, verify it, measure every variant, leave out what loses more
than the gate allows, write the report. `compressed=[...]` puts the results of `python -m optimize` beside it,
`targets=[...]` what the devices need that it is for. `onnx=MODEL.onnx calibration=FOLDER|FILE.npz` begins at
a model of anyone's.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.load import run_command
from configs.quantize import QuantizeConfig
from deploy.target import load_target

if TYPE_CHECKING:
    from optimize.pack import Packed


def main(config: QuantizeConfig, overrides: Sequence[str]) -> None:
    command = shlex.join(["python", "-m", "scripts.quantize_and_benchmark", *overrides])
    packed, out = (from_onnx if config.onnx else from_checkpoint)(config, command)
    # plotly is not light either
    from deploy.table import format_table
    from optimize.targets import tell
    from scripts.report import write_report

    report = write_report([out])
    told = tell([load_target(name) for name in config.targets], packed.bundle.variants)
    table = "\n".join([format_table(packed.measurements), *packed.marks, *told])
    print(f"\n{table}\n\nbundle: {packed.bundle.root}\nreport: {report}")


def from_checkpoint(config: QuantizeConfig, command: str) -> tuple[Packed, Path]:
    # torch takes seconds to import: a mistake in the config is told before that.
    from data.reader import local_copies, reader_of
    from optimize.int8 import Images
    from optimize.pack import Packing, pack
    from optimize.quantize import SCALES_NAME
    from optimize.variants import distinct, label_of, make_variants
    from train.checkpoint import read_facts
    from train.images import images_of

    assert config.checkpoint is not None  # the schema has seen to that
    path = Path(config.checkpoint)
    facts = read_facts(path)
    out = Path(config.out) if config.out else path.parent
    data, splits = images_of(facts, out / "data", config.data_root, say)
    compressed = [Path(other) for other in config.compressed]
    labels = distinct(["", *(label_of(read_facts(other).structure) for other in compressed)])

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        # The device's code, which measures here, reads whole files.
        val = local_copies(splits.val, reader_of(data, splits.val), work / "val")
        images = Images(facts.input_spec, data, facts.config.loader, replace(splits, val=val))
        made = [
            one
            for number, (source, label) in enumerate(zip([path, *compressed], labels, strict=True))
            for one in make_variants(source, label, images, config, work / str(number), say)
        ]
        how = Packing(
            name=facts.config.name,
            spec=facts.input_spec,
            val=val,
            bench=config.bench,
            gate=config.gate,
            num_samples=config.num_samples,
            seed=config.seed,
            command=command,
            targets=[load_target(name) for name in config.targets],
        )
        packed = pack(made, how, out, say)
        if "int8" in config.precisions:
            shutil.copyfile(work / "0" / SCALES_NAME, out / SCALES_NAME)
    return packed, out


def from_onnx(config: QuantizeConfig, command: str) -> tuple[Packed, Path]:
    from optimize.foreign_pack import ForeignPacking, pack_foreign
    from optimize.foreign_read import read_job
    from optimize.foreign_variants import make_foreign
    from optimize.quantize import SCALES_NAME

    assert config.onnx is not None
    path = Path(config.onnx)
    out = Path(config.out) if config.out else Path("runs", path.stem)
    job = read_job(path, config, say)
    with tempfile.TemporaryDirectory() as folder:
        made = make_foreign(path, job.foreign, job.calibration, config, Path(folder), say)
        how = ForeignPacking(
            name=path.stem,
            foreign=job.foreign,
            spec=job.spec,
            class_output=job.class_output,
            test=job.test,
            bench=config.bench,
            gate=config.gate,
            min_snr_db=config.min_snr_db,
            num_samples=config.num_samples,
            seed=config.seed,
            command=command,
            targets=[load_target(name) for name in config.targets],
        )
        packed = pack_foreign(made, how, out, say)
        if "int8" in config.precisions:
            shutil.copyfile(Path(folder, SCALES_NAME), out / SCALES_NAME)
    return packed, out


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command("quantize_and_benchmark", QuantizeConfig, main)
