"""`python -m scripts.quantize_and_benchmark checkpoint=RUN/checkpoint.pt`: from a checkpoint to a table.

Export to ONNX, quantise to INT8, pack the bundle, verify it, measure every variant, leave out what loses more
than the gate allows, write the report. `compressed=[...]` puts the results of `python -m optimize` beside it.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from configs.load import run_command
from configs.schema import QuantizeConfig
from deploy.errors import LabError


def main(config: QuantizeConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: a mistake in the config is told before that.
    from data.calibration import choose_images
    from data.reader import local_copies, reader_of
    from deploy.bench import bench
    from deploy.results import append_measurements
    from deploy.table import format_table
    from deploy.verify import verify
    from optimize.bundle import build_bundle
    from optimize.gate import judge
    from optimize.int8 import Images
    from optimize.quantize import SCALES_NAME
    from optimize.variants import distinct, label_of, make_variants
    from scripts.report import write_report
    from train.checkpoint import read_facts
    from train.images import images_of

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
            for one in make_variants(
                source, label, images, config.calibration, config.seed, work / str(number), say
            )
        ]
        pack = partial(
            build_bundle,
            name=facts.config.name,
            spec=facts.input_spec,
            models={one.variant.name: one.model for one in made},
            samples=choose_images(val, config.num_samples, config.seed),
            commands=[shlex.join(["python", "-m", "scripts.quantize_and_benchmark", *overrides])],
        )
        # Measured here first, so that an older good bundle is only replaced by one that verifies.
        draft = pack(work / "bundle", variants=[one.variant for one in made])
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
        shipped, marks = judge(made, measurements, config.gate)
        bundle = pack(out / "bundle", variants=shipped)
        shutil.copyfile(work / "0" / SCALES_NAME, out / SCALES_NAME)
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    append_measurements(results, measurements)
    report = write_report([out])
    table = "\n".join([format_table(measurements), *marks])
    print(f"\n{table}\n\nbundle: {bundle.root}\nreport: {report}")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command("quantize_and_benchmark", QuantizeConfig, main)
