"""The road from a network of anyone's to a bundle and a table: a classifier, a detector, an encoder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from configs.load import load
from configs.quantize import QuantizeConfig
from deploy.__main__ import main as deploy
from deploy.bundle import Bundle, open_bundle
from deploy.errors import LabError
from deploy.results import read_measurements
from deploy.tensor_spec import TensorSpec
from optimize.dla import read_cache
from optimize.foreign_read import read_job
from optimize.foreign_samples import Feeds, read_samples
from scripts.quantize_and_benchmark import main
from scripts.try_any_onnx import run_trial
from tests.foreign_nets import SIZE, VOCABULARY, classifier, detector, encoder, pictures, sentences
from tests.processes import python

QUICK = ["bench.seconds=0.02", "bench.threads=1", "bench.batches=[1,4]", "num_samples=3"]


def config_of(*overrides: str) -> QuantizeConfig:
    return load("quantize_and_benchmark", QuantizeConfig, overrides)


def road(folder: Path, model: Path, *overrides: str) -> Bundle:
    """Into `folder/out`."""
    words = [f"onnx={model}", f"out={folder / 'out'}", *QUICK, *overrides]
    main(config_of(*words), words)
    return open_bundle(folder / "out" / "bundle")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy pictures, in four class folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(12):
        folder = root / f"class_{i % 4}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def test_an_encoder_with_two_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "texts.npz", **sentences(20))  # type: ignore[arg-type]
    bundle = road(
        tmp_path, encoder(tmp_path / "e.onnx"), f"calibration={tmp_path / 'texts.npz'}",
        "precisions=[int8,fp16]",
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "ids N x ? is N x 6; mask N x ? is N x 6" in told
    assert "16 samples calibrate, 4 others are compared" in told
    forms = {v.name: (v.precision, v.backend) for v in bundle.variants}
    assert forms == {
        "fp32": ("fp32", "onnxruntime"), "int8-cpu": ("int8", "onnxruntime"), "int8": ("int8", "tensorrt"),
        "fp16": ("fp16", "tensorrt"),
    }  # fmt: skip
    for name in ("int8-cpu", "int8", "fp16"):
        metrics = bundle.variant(name).metrics
        assert metrics["gate"]["passed"]
        assert metrics["num_images"] == 4
        assert 14 < metrics["snr_db"]["states"] < 300
    answers = bundle.answers()
    np.testing.assert_allclose(answers["int8"]["states"], answers["int8-cpu"]["states"], atol=1e-5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "bundle", "results.jsonl", "report.html", "scales.json",
    }  # fmt: skip
    page = (tmp_path / "out" / "report.html").read_text()
    assert "How near to the original" in page
    assert "takes ids int64 N x 6 and mask int64 N x 6" in page
    assert "metrics.jsonl is not there" not in page
    snr = bundle.variant("fp16").metrics["snr_db"]["states"]
    assert f"<td>fp16</td><td>{snr:.1f}</td>" in page


def test_a_classifier_on_a_folder_of_images(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = road(
        tmp_path, classifier(tmp_path / "c.onnx"), f"calibration={photos}", "calibration.num_images=6",
        "preprocess.resize=18", "preprocess.mean=[0.5,0.5,0.5]", "gate.max_drop=100",
        "targets=[orin_nx_16gb]",
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "shorter side to 18 px, the middle 16 x 16, RGB, 0 to 1, less [0.5, 0.5, 0.5]" in told
    assert "class 0 is 'class_0', class 3 is 'class_3'" in told
    assert "target orin_nx_16gb: int8" in told
    cache = bundle.root / bundle.variant("dla").artefacts["calibration_cache"]
    assert bundle.inputs[0].name in read_cache(cache.read_text())[1]
    assert (bundle.root / "targets.json").is_file()
    assert bundle.class_output == "probabilities"
    assert bundle.input is not None
    assert (bundle.input.size, bundle.input.class_names[3]) == (SIZE, "class_3")
    assert len(bundle.labels) == 3
    for m in read_measurements(tmp_path / "out" / "results.jsonl"):
        assert m.accuracy.num_images == 6
        assert m.accuracy.top1 is not None
        assert m.accuracy.snr_db is not None
    # What a person gives on the device: the image files themselves.
    assert deploy(["verify", str(bundle.root), "--images", str(photos), "--threads", "1"]) == 0
    assert "on 12 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "num_classes", "labels"),
    [
        (("b", "a", "c"), 3, [0, 1, 2]),  # in the order of their names
        (("10", "2", "0"), 11, [0, 10, 2]),  # the names are the indexes
        (("b", "a"), 3, None),  # nobody knows which two of the three
        (("0", "1"), None, None),  # there are no classes
    ],
)
def test_labels_of_class_folders(
    tmp_path: Path, names: tuple[str, ...], num_classes: int | None, labels: list[int] | None
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "x.png")
    inputs = (TensorSpec("pixels", "float32", (None, 3, 8, 8)),)
    found = read_samples(tmp_path, inputs, config_of("checkpoint=c").preprocess, num_classes)
    assert (None if found.labels is None else found.labels.tolist()) == labels


def test_a_detector_whose_outputs_are_too_far_stays_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", images=pictures(10))
    np.savez(tmp_path / "bright.npz", images=40 * pictures(4, seed=1))
    bundle = road(
        tmp_path, detector(tmp_path / "d.onnx"), f"calibration.source={tmp_path / 'x.npz'}",
        f"test={tmp_path / 'bright.npz'}", "bench.batches=[1,2]",
    )  # fmt: skip
    told = capsys.readouterr().out
    assert "10 samples calibrate, 4 others are compared" in told
    assert "WARNING: 'images' reaches" in told
    assert "the model takes a batch of 1 only: measured at that, not at bench.batches [1, 2]" in told
    assert re.search(r"GATE: int8-cpu is -?\d+\.\d+ dB from fp32, min_snr_db is 14: not in the bundle", told)
    assert [v.name for v in bundle.variants] == ["fp32"]
    assert [spec.name for spec in bundle.outputs] == ["boxes", "confidences"]


@pytest.mark.parametrize("sides", [[1, 256], [1, -1]])  # fails at two, and gives one answer for two
def test_a_batch_that_only_seems_free_is_one(tmp_path: Path, sides: list[int]) -> None:
    path = detector(tmp_path / "d.onnx", batch="n")
    model = onnx.load(path)
    shape = onnx.numpy_helper.from_array(np.array(sides, np.int64), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["boxes", "shape"], ["row"]))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("row", 1, None))
    onnx.save(model, path)
    np.savez(tmp_path / "x.npz", images=pictures(4))
    said: list[str] = []
    config = config_of(f"onnx={path}", f"calibration={tmp_path / 'x.npz'}", "class_output=null")
    job = read_job(path, config, said.append)
    assert job.foreign.inputs[0].shape == (1, 3, 16, 16)
    assert job.foreign.outputs[0].shape == (1, 256)
    assert any("the model says that it takes any batch, but" in line for line in said)


def test_samples_are_one_by_one_and_never_in_both_sets(tmp_path: Path, photos: Path) -> None:
    path = classifier(tmp_path / "c.onnx", side="s")
    config = config_of(f"onnx={path}", f"calibration={photos}", "preprocess.size=20")
    job = read_job(path, config, lambda line: None)
    feeds = Feeds(job.calibration)
    assert (len(feeds), len(job.test)) == (10, 2)
    assert feeds[3]["pixels"].shape == (1, 3, 20, 20)
    np.testing.assert_array_equal(feeds[3]["pixels"], list(feeds)[3]["pixels"])
    seen = {feed["pixels"].tobytes() for feed in [*feeds, *Feeds(job.test)]}
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["onnx={c}", "calibration={t}/nowhere"], r"nowhere: No such file or directory"),
        (["onnx={c}", "calibration={t}/empty"], r"empty: holds no image"),
        (["onnx={c}", "calibration={t}/text"], r"text: 'a.txt' must end in one of"),
        (["onnx={c}", "calibration={t}/both"], r"both: holds both files and folders"),
        (
            ["onnx={c}", "calibration={p}", "preprocess.size=24"],
            r"preprocess.size is 24: images become float32",
        ),
        (["onnx={e}", "calibration={p}"], r"images can be given to one input float32 N x 3 x S x S"),
        (["onnx={c}", "calibration={t}/one.npz"], r"1 sample, at least 2 are needed"),
        (["onnx={c}", "calibration={t}/texts.npz"], r"no array for the inputs \['pixels'\]"),
        (
            ["onnx={e}", "calibration={t}/beyond.npz"],
            r"fails on sample \d+ of \w+, whose inputs hold \{'ids': '",
        ),
        (["onnx={c}", "calibration={p}", "class_output=scores"], r"class_output=scores: must be an output"),
        (
            ["onnx={d}", "calibration={t}/labelled.npz"],
            r"which output names the class\? Give class_output=NAME",
        ),
    ],
)
def test_a_mistake_leaves_nothing_behind(
    tmp_path: Path, photos: Path, words: list[str], message: str
) -> None:
    for name in ("empty", "text", "both"):
        (tmp_path / name).mkdir()
    for path in (tmp_path / "text" / "a.txt", tmp_path / "both" / "a.png"):
        path.write_text("no image")
    (tmp_path / "both" / "folder").mkdir()
    np.savez(tmp_path / "one.npz", pixels=pictures(1))
    np.savez(tmp_path / "labelled.npz", images=pictures(4), labels=np.zeros(4, np.int64))
    np.savez(tmp_path / "texts.npz", **sentences(4))  # type: ignore[arg-type]
    beyond = sentences(4)
    beyond["ids"][2, 1] = VOCABULARY
    np.savez(tmp_path / "beyond.npz", **beyond)  # type: ignore[arg-type]
    models = {
        "c": classifier(tmp_path / "c.onnx"), "d": detector(tmp_path / "d.onnx"),
        "e": encoder(tmp_path / "e.onnx"),
    }  # fmt: skip
    given = [word.format(t=tmp_path, p=photos, **models) for word in words]
    with pytest.raises(LabError, match=message):
        main(config_of(*given, f"out={tmp_path / 'out'}", *QUICK), given)
    assert not (tmp_path / "out").exists()


COMMAND = """
from configs.load import run_command
from configs.quantize import QuantizeConfig
run_command("quantize_and_benchmark", QuantizeConfig, lambda config, words: print(config.calibration.source))
"""


def test_the_command_line_takes_the_words_of_the_docs() -> None:
    done = python("-c", COMMAND, "onnx=model.onnx", "calibration=a folder/of=images")
    assert done.stdout == "a folder/of=images\n"


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        ([], ["checkpoint is required: give checkpoint=RUN/checkpoint.pt, or onnx=MODEL.onnx"]),
        (["checkpoint=c", "onnx=m"], ["checkpoint and onnx are two networks"]),
        (["checkpoint=c", "calibration=x", "test=y"], ["calibration.source is for onnx", "test is for onnx"]),
        (
            ["onnx=m", "compressed=[c]", "calibration.equalise=true", "precisions=[bf16,int8]"],
            [
                "calibration is required with onnx",
                "compressed is for checkpoints",
                "calibration.equalise is for checkpoints",
                r"precisions \['bf16'\] are for checkpoints",
            ],
        ),
    ],
)
def test_one_network_one_road(overrides: list[str], messages: list[str]) -> None:
    for message in messages:
        with pytest.raises(LabError, match=message):
            config_of(*overrides)


def test_a_section_keeps_its_other_values() -> None:
    plain = config_of("checkpoint=c").calibration
    short = config_of("onnx=m", "calibration=a=b.npz", "calibration.method=mse").calibration
    assert (short.source, short.method, short.num_images) == ("a=b.npz", "mse", plain.num_images)
    assert config_of("onnx=m", "calibration={source: x}").calibration.source == "x"


@pytest.mark.slow
def test_a_model_that_nobody_here_wrote(tmp_path: Path) -> None:
    """Which way up a line of text is: the labels are true, so the original must know them."""
    try:
        run_trial("direction", tmp_path, [*QUICK, "precisions=[int8,fp16]"])
    except LabError as error:
        if "pip install" in str(error):
            pytest.skip("the package cannot be had here")
        raise
    bundle = open_bundle(tmp_path / "direction" / "bundle")
    assert bundle.variant("fp32").metrics["top1"] > 0.95
    for name in ("int8-cpu", "int8", "fp16"):
        assert bundle.variant(name).metrics["gate"]["passed"]
