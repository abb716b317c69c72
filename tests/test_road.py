"""The whole road in small: train, export, quantise, bundle, verify, measure, report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.compress import OptimizeConfig
from configs.load import load
from configs.quantize import GateConfig, QuantizeConfig
from configs.schema import TrainConfig
from data.calibration import choose_images
from deploy.__main__ import main as deploy
from deploy.bundle import Variant, open_bundle
from deploy.errors import LabError
from deploy.results import read_measurements
from optimize.bundle import build_bundle
from optimize.calibrate import Scales
from optimize.chain import run_chain
from optimize.dla import read_cache
from optimize.gate import judge
from optimize.variants import Made, distinct, label_of
from scripts.quantize_and_benchmark import main as quantize_and_benchmark
from tests.processes import python
from train.checkpoint import NAME, read_facts
from train.images import images_of
from train.run import run

QUICK = [
    "bench.seconds=0.05",
    "bench.threads=1",
    "bench.batches=[1,4]",
    "num_samples=3",
    "calibration.num_images=12",
    "gate.max_drop=100",
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
def chain(trained: Path) -> Path:
    """Half of the MACs, at random, and INT8."""
    run_chain(load("optimize", OptimizeConfig, chain_of(trained)), print)
    return trained / "optimize"


def chain_of(trained: Path) -> list[str]:
    return [
        f"checkpoint={trained / 'checkpoint.pt'}", "stages=[prune,quantize]", "prune.importance=random",
        "calibration.num_images=12", "latency.seconds=0.05", "gate.max_drop=100",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def compressed(trained: Path, chain: Path) -> Path:
    """Every precision and every option of quantisation, and the smaller network beside the first one."""
    overrides = [
        f"checkpoint={trained / 'checkpoint.pt'}", f"compressed=[{chain / '2-quantize' / 'checkpoint.pt'}]",
        "precisions=[int8,fp16,bf16,int8-weights]", "calibration.equalise=true",
        "calibration.correct_biases=true", "calibration.mixed=true",
        "targets=[orin_nx_16gb,orin_nano_4gb]", *QUICK,
    ]  # fmt: skip
    quantize_and_benchmark(load("quantize_and_benchmark", QuantizeConfig, overrides), [])
    return trained


def test_int8_is_made_of_the_stage_before(trained: Path, chain: Path, tmp_path: Path) -> None:
    alone = [*chain_of(trained), "stages=[quantize]", f"out={tmp_path}"]
    run_chain(load("optimize", OptimizeConfig, alone), print)
    for before, made in (
        (tmp_path / "0-original", tmp_path / "1-quantize"),
        (chain / "1-prune", chain / "2-quantize"),
    ):
        assert (made / "fp32.onnx").read_bytes() == (before / "fp32.onnx").read_bytes()
        assert (made / "checkpoint.pt").exists()


def test_the_road_leaves_what_the_readme_names(compressed: Path) -> None:
    left = {path.name for path in compressed.iterdir()}
    assert left >= {
        "checkpoint.pt", "config.yaml", "metrics.jsonl", "tensorboard", "logs", "bundle", "results.jsonl",
        "report.html", "scales.json",
    }  # fmt: skip
    forms = ("fp32", "int8-cpu", "int8-weights")
    on_this_cpu = [*forms, *(f"pruned-{form}" for form in forms)]
    measured = [(m.variant, m.kind, m.batch) for m in read_measurements(compressed / "results.jsonl")]
    assert measured == [
        (variant, kind, batch)
        for variant in on_this_cpu
        for kind, batch in (("latency", 1), ("throughput", 4))
    ]


def test_the_bundle_carries_what_was_trained(compressed: Path) -> None:
    bundle = open_bundle(compressed / "bundle")
    forms = {v.name: (v.precision, v.backend) for v in bundle.variants}
    ours = {
        "fp32": ("fp32", "onnxruntime"), "int8-cpu": ("int8", "onnxruntime"), "int8": ("int8", "tensorrt"),
        "fp16": ("fp16", "tensorrt"), "bf16": ("bf16", "tensorrt"),
        "int8-weights": ("int8-weights", "onnxruntime"), "dla": ("int8", "tensorrt-dla"),
    }  # fmt: skip
    assert forms == ours | {f"pruned-{name}": form for name, form in ours.items()}
    assert bundle.input is not None
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
    told = capsys.readouterr().out
    assert "on 12 images; the bundle records" in told
    assert "not run: its INT8 is in a calibration cache" in told


def test_what_the_targets_need_travels(compressed: Path) -> None:
    bundle = open_bundle(compressed / "bundle")
    files = {
        "calibration_cache": "models/pruned-dla.cache",
        "layer_precisions": "models/pruned-dla.layers.txt",
    }
    assert bundle.variant("pruned-dla").artefacts == files
    assert {*files.values(), "targets.json"} <= bundle.files.keys()
    scales = Scales.from_json((compressed / "scales.json").read_text()).tensors
    scales["mean"] = scales.pop("view")  # the Gemm's input has become that of a convolution
    assert read_cache((bundle.root / "models/dla.cache").read_text())[1].items() >= scales.items()
    expected = bundle.expected()
    np.testing.assert_array_equal(expected["dla"], expected["int8"])
    assert bundle.variant("dla").metrics["top1"] == bundle.variant("int8").metrics["top1"]
    nx, nano = json.loads((bundle.root / "targets.json").read_text())["targets"]
    assert {j["version"]: j["dla"] for j in nx["jetpacks"]}["6.2"] == ["dla", "pruned-dla"]
    assert all(j["dla"] == [] for j in nano["jetpacks"])


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


def test_every_precision_is_what_it_says(compressed: Path) -> None:
    bundle = open_bundle(compressed / "bundle")
    whole = bundle.path("fp32").stat().st_size
    sizes = {v.name: bundle.path(v.name).stat().st_size / whole for v in bundle.variants}
    assert sizes["fp16"] == pytest.approx(0.5, abs=0.02)
    assert sizes["bf16"] == pytest.approx(0.5, abs=0.02)
    assert sizes["int8-weights"] == pytest.approx(0.25, abs=0.02)
    found = bundle.variant("int8").metrics
    assert found["equalisation"]["pairs"]
    assert found["bias_correction"]["num_layers"] == 21
    assert found["mixed"]["met"]
    assert found["mixed"]["keep_float"] == []
    assert {"top1", "gate"} <= bundle.variant("bf16").metrics.keys()
    # What a device should answer in half precision is near FP32, and not the same.
    expected = bundle.expected()
    for half in ("fp16", "bf16"):
        np.testing.assert_allclose(expected[half], expected["fp32"], rtol=0.1, atol=0.05)
        assert not np.array_equal(expected[half], expected["fp32"])


def test_a_chain_ends_in_int8(compressed: Path, chain: Path) -> None:
    records = run_chain(load("optimize", OptimizeConfig, chain_of(compressed)), print)  # done already
    int8 = chain / "2-quantize"
    assert records[2].onnx_bytes == (int8 / "int8-cpu.onnx").stat().st_size < records[1].onnx_bytes / 3
    assert records[2].found["num_int8_convs"] == records[2].found["num_convs"] == 20
    assert (int8 / "checkpoint.pt").read_bytes() == (chain / "1-prune" / "checkpoint.pt").read_bytes()
    assert run_chain(load("optimize", OptimizeConfig, chain_of(compressed)), print) == records
    with pytest.raises(LabError, match=r"2-quantize is of other settings .*'num_images': 6"):
        run_chain(
            load("optimize", OptimizeConfig, [*chain_of(compressed), "calibration.num_images=6"]), print
        )
    bundle = open_bundle(compressed / "bundle")
    pruned = bundle.variant("pruned-int8")
    assert pruned.num_parameters == records[1].parameters < bundle.variant("int8").num_parameters / 1.5
    assert pruned.metrics["top1"] == bundle.variant("pruned-int8-cpu").metrics["top1"]
    assert pruned.metrics["gate"]["passed"]


def test_models_that_no_variant_names_stay_behind(compressed: Path, tmp_path: Path) -> None:
    bundle = open_bundle(compressed / "bundle")
    assert bundle.input is not None
    left = build_bundle(
        tmp_path / "less", name="less", spec=bundle.input, variants=[bundle.variant("fp32")], commands=[],
        models={v.name: bundle.path(v.name) for v in bundle.variants}, answers={}, artefacts={}, targets=[],
        samples=choose_images(images_of(read_facts(compressed / NAME), tmp_path, None, print)[1].val, 2, 0),
    )  # fmt: skip
    assert [path.name for path in (left.root / "models").iterdir()] == ["fp32.onnx"]


def variant(name: str, same_as: str) -> Made:
    return Made(Variant(name, "", "int8", "onnxruntime", 1, {}, {}), Path(), same_as)


def test_what_falls_through_the_gate_is_marked_and_stays_behind() -> None:
    made = [variant("fp32", "fp32"), variant("int8-cpu", "int8-cpu"), variant("int8", "int8-cpu")]
    found = {"fp32": 0.9, "int8-cpu": 0.895}
    shipped, marks = judge(made, found, 1000, GateConfig(0.5, False))
    assert [v.name for v in shipped] == ["fp32", "int8-cpu", "int8"]
    assert marks == []
    assert shipped[2].metrics["top1"] == 0.895
    shipped, marks = judge(made, found, 1000, GateConfig(0.4, False))
    assert [v.name for v in shipped] == ["fp32"]
    assert marks == [
        f"GATE: {name} is 0.50 points below fp32, gate.max_drop is 0.4: not in the bundle"
        for name in ("int8-cpu", "int8")
    ]
    shipped, marks = judge(made, found, 1000, GateConfig(0.4, True))
    assert [v.metrics["gate"]["passed"] for v in shipped] == [True, False, False]
    assert "shipped because of gate.ship_failed" in marks[0]
    with pytest.raises(LabError, match="its accuracy was not measured"):
        judge(made, {"fp32": 0.9}, 1000, GateConfig(0.4, True))


def test_variants_are_named_by_what_was_done() -> None:
    kinds = ("channels", "masks", "fake_quant")
    assert label_of([{"change": kind} for kind in kinds]) == "pruned-sparse-qat"
    assert label_of([]) == ""
    assert distinct(["", "pruned", "", "pruned", "qat", "pruned"]) == [
        "", "pruned", "2", "pruned-2", "qat", "pruned-3",
    ]  # fmt: skip


def test_calibration_on_one_class_is_refused(compressed: Path) -> None:
    overrides = [f"checkpoint={compressed / 'checkpoint.pt'}", *QUICK, "calibration.num_images=1"]
    with pytest.raises(LabError, match=r"calibration.num_images=1: the 1 images are all of one class"):
        quantize_and_benchmark(load("quantize_and_benchmark", QuantizeConfig, overrides), overrides)
    assert open_bundle(compressed / "bundle").variants


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
