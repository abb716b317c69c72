"""The whole road in small: train, export, quantise, bundle, verify, measure, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.load import load
from configs.schema import QuantizeConfig, TrainConfig
from deploy.__main__ import main as deploy
from deploy.bundle import open_bundle
from deploy.errors import LabError
from deploy.results import read_measurements
from scripts.quantize_and_benchmark import main as quantize_and_benchmark
from tests.processes import python
from train.run import run

QUICK = [
    "bench.seconds=0.05",
    "bench.threads=1",
    "bench.batches=[1,4]",
    "num_samples=3",
    "calibration.num_images=12",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("road")


@pytest.fixture(scope="module")
def trained(images: Path) -> Path:
    """The run folder of a ResNet-18 that has seen 48 drawn images twice."""
    overrides = [
        "data=synthetic", "data.num_classes=3", "data.num_train=48", "data.num_val=12", "data.width=80",
        "data.height=60", "data.input.size=32", "data.input.resize=40", f"data.root={images / 'drawn'}",
        f"data.cache_dir={images / 'cache'}", f"run_dir={images / 'run'}", "batch_size=16", "epochs=2",
        "ema_decay=0.5", "device=cpu",
    ]  # fmt: skip
    run(load("train", TrainConfig, overrides))
    return images / "run"


@pytest.fixture(scope="module")
def compressed(trained: Path) -> Path:
    config = load(
        "quantize_and_benchmark", QuantizeConfig, [f"checkpoint={trained / 'checkpoint.pt'}", *QUICK]
    )
    quantize_and_benchmark(config, [])
    return trained


def test_the_road_leaves_what_the_readme_names(compressed: Path) -> None:
    left = {path.name for path in compressed.iterdir()}
    assert left >= {
        "checkpoint.pt", "config.yaml", "metrics.jsonl", "tensorboard", "logs", "bundle", "results.jsonl",
        "report.html", "scales.json",
    }  # fmt: skip
    measured = [(m.variant, m.kind, m.batch) for m in read_measurements(compressed / "results.jsonl")]
    assert measured == [
        (variant, kind, batch)
        for variant in ("fp32", "int8-cpu")
        for kind, batch in (("latency", 1), ("throughput", 4))
    ]


def test_the_bundle_carries_what_was_trained(compressed: Path) -> None:
    bundle = open_bundle(compressed / "bundle")
    assert [v.name for v in bundle.variants] == ["fp32", "int8-cpu", "int8"]
    assert bundle.input.class_names == ("class_000", "class_001", "class_002")
    assert (bundle.input.size, bundle.input.resize) == (32, 40)
    last = json.loads((compressed / "metrics.jsonl").read_text().splitlines()[-1])
    fp32 = bundle.variant("fp32")
    assert fp32.metrics["top1"] == pytest.approx(last["top1"])
    assert fp32.metrics["export"]["relative_error"] < 1e-4
    # Two forms of one set of scales: as ONNX defines the operators, they give the same logits.
    expected = bundle.expected()
    np.testing.assert_array_equal(expected["int8"], expected["int8-cpu"])
    assert not np.array_equal(expected["int8"], expected["fp32"])


def test_a_device_can_verify_it_over_a_folder(
    compressed: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (drawn,) = (images / "drawn").iterdir()
    assert (
        deploy(["verify", str(compressed / "bundle"), "--images", str(drawn / "val"), "--threads", "1"]) == 0
    )
    assert "on 12 images; the bundle records" in capsys.readouterr().out


def test_other_images_are_refused_and_the_bundle_stays(compressed: Path, images: Path) -> None:
    before = (compressed / "bundle" / "bundle.json").read_bytes()
    other = images / "other"
    (drawn,) = (images / "drawn").iterdir()
    shutil.copytree(drawn, other / drawn.name)
    for split in ("train", "val"):
        (other / drawn.name / split / "class_000").rename(other / drawn.name / split / "cat")
    overrides = [f"checkpoint={compressed / 'checkpoint.pt'}", f"data_root={other}", *QUICK]
    with pytest.raises(LabError, match=r"class_000.*data_root="):
        quantize_and_benchmark(load("quantize_and_benchmark", QuantizeConfig, overrides), overrides)
    assert (compressed / "bundle" / "bundle.json").read_bytes() == before


FULL_DISK = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # the kernel refuses more, as a full disk does
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_is_one_error(images: Path) -> None:
    cached = [f"data.root={images / 'digits'}", f"data.cache_dir={images / 'cache'}"]
    done = python("-c", FULL_DISK, "data=digits", *cached, f"run_dir={images / 'full'}")
    assert done.returncode == 2, done.stderr
    assert "File too large: make room on that disk" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "data=image_folder", "data.root=/nowhere"], "data.root=/nowhere: no such folder"),
        (["scripts.quantize_and_benchmark", "checkpoint=/nowhere/c.pt"], "no checkpoint /nowhere/c.pt"),
        (["scripts.quantize_and_benchmark"], "checkpoint is required"),
        (["deploy", "verify", "/nowhere"], "/nowhere"),
        (["scripts.report", "/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_error(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = python("-m", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
