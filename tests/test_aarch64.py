"""The .pyz on an arm64 CPU with the dot products of Orin's, emulated: arm64 Python and wheels under qemu.

What this can show: the code, the wheels and ARM's kernels run and answer right. Not how fast: an emulated
query takes a hundred times as long.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.bundle import Variant, write_bundle
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from deploy.results import read_measurements
from optimize.archive import write_archive
from optimize.bundle import logits_of
from optimize.calibrate import calibrate
from optimize.export import export_onnx
from optimize.files import write_model
from optimize.precision import to_fp16
from optimize.qdq import emit
from scripts.device_python import ABSENT, found_by
from tests.pictures import save
from tests.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.aarch64]
SIZE = 32
VARIANTS = {"fp32": "onnxruntime", "fp16": "tensorrt", "int8": "tensorrt", "int8-cpu": "onnxruntime"}


@pytest.fixture(scope="module")
def arm() -> Path:
    """The emulated Python."""
    folder = ROOT / ".venv" / "aarch64"
    made = subprocess.run(
        [str(ROOT / "scripts" / "aarch64_python.sh"), str(folder), f"{ROOT / '.venv/bin/python'} -m pip"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode == 3:
        pytest.skip(made.stderr.strip())
    assert made.returncode == 0, made.stderr
    python = folder / "bin" / "python"
    assert found_by(python, ABSENT) == []
    return python


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-10 with random weights in every precision that ONNX Runtime has, as one file."""
    import torch
    import torchvision

    folder = tmp_path_factory.mktemp("aarch64")
    torch.manual_seed(0)
    spec = InputSpec(SIZE, SIZE, (0.5,) * 3, (0.25,) * 3, tuple(f"class-{i}" for i in range(10)))
    pictures = [(save(folder / f"{i}.png", 40, 50, seed=i), i) for i in range(4)]
    inputs = np.stack([preprocess(load_image(path), spec) for path, _ in pictures])
    files = {name: folder / f"{name}.onnx" for name in VARIANTS}
    block = torchvision.models.resnet.BasicBlock
    export_onnx(torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=10), spec, files["fp32"])
    to_fp16(files["fp32"], files["fp16"])
    scales = calibrate(files["fp32"], [inputs], "max", 99.99)
    write_model(emit(onnx.load(files["fp32"]), scales, "s8"), files["int8"])
    write_model(emit(onnx.load(files["fp32"]), scales, "u8"), files["int8-cpu"])
    bundle = write_bundle(
        folder / "bundle",
        name="resnet10",
        input=spec,
        variants=[
            Variant(name, "", name.removesuffix("-cpu"), backend, 0, {}, {})
            for name, backend in VARIANTS.items()
        ],
        models=files,
        samples=pictures,
        expected={name: logits_of(file, inputs) for name, file in files.items()},
        versions={},
        commands=[],
    )
    return write_archive(bundle.root, folder / "resnet10.pyz")


def run(arm: Path, archive: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "EDGELAB_CACHE": str(archive.with_name("cache"))}
    return subprocess.run(
        [str(arm), str(archive), *arguments], env=environment, capture_output=True, text=True, check=False
    )


def test_doctor_knows_what_can_run_here(arm: Path, archive: Path) -> None:
    done = run(arm, archive, "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["can_run"] is True
    assert set(VARIANTS) <= set(re.findall(r"[\w-]+", done.stdout))


def test_it_verifies_every_variant(arm: Path, archive: Path) -> None:
    done = run(arm, archive, "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in VARIANTS:
        assert f"ok    {name}, as written" in done.stdout
        assert f"ok    {name}, optimised" in done.stdout


def test_it_measures_and_says_on_what(arm: Path, archive: Path) -> None:
    results = archive.with_name("results.jsonl")
    quick = ["--seconds", "0.01", "--warmup", "0", "--batch", "1", "--variant", "int8-cpu"]
    done = run(arm, archive, "bench", *quick, "--out", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    measurements = read_measurements(results)
    assert {m.variant for m in measurements} == {"int8-cpu"}
    for one in measurements:
        assert one.machine["architecture"] == "aarch64"
        assert one.peak_memory_mib is not None  # a child process, which is emulated too
        assert one.peak_memory_mib > 20


def test_it_answers_as_this_machine_does(arm: Path, archive: Path) -> None:
    theirs = run(arm, archive, "classify", "--variant", "int8-cpu")
    ours = run(Path(sys.executable), archive, "classify", "--variant", "int8-cpu")
    assert theirs.returncode == ours.returncode == 0, theirs.stderr + ours.stderr
    assert theirs.stdout.splitlines()[1:] == ours.stdout.splitlines()[1:]  # the first line has the time


def test_targets_and_help_need_no_library(arm: Path, archive: Path) -> None:
    assert "orin_nano_8gb" in run(arm, archive, "targets").stdout
    assert "python3 resnet10.pyz bench" in run(arm, archive, "bench", "--help").stdout
