"""OpenVINO answers as ONNX Runtime does, on the same bundle, and its types are those of the file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from deploy.__main__ import main
from deploy.backends import open_runner
from deploy.bench import made_for
from deploy.bundle import Bundle, Variant
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.machine import describe_machine, usable_cores
from deploy.manifest import LOGITS, image_tensors
from deploy.ov import compile_model
from deploy.results import read_measurements
from deploy.table import rows
from optimize.calibrate import calibrate
from optimize.qdq import NumberFormat, emit
from tests import residual_graph
from tests.processes import python
from tests.test_deploy_bundle import SIZE, tiny_bundle, tiny_onnx

FORMS = {"fp32": "fp32", "s8": "int8", "u8": "int8"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("openvino"))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A network with both kinds of skip, in FP32 and in the two INT8 forms."""
    folder = tmp_path_factory.mktemp("residual")
    model = residual_graph.residual()
    path = residual_graph.saved(model, folder)
    scales = calibrate(path, [residual_graph.images(0, 64)], "max", 99.99)
    for form in get_args(NumberFormat):
        onnx.save(emit(model, scales, form), folder / f"{form}.onnx")
    spec = InputSpec(residual_graph.SIZE, residual_graph.SIZE, (0.5,) * 3, (0.5,) * 3, tuple("abcdefghij"))
    variants = tuple(
        Variant(name, f"{name}.onnx", precision, "onnxruntime", 0, {}, {})
        for name, precision in FORMS.items()
    )
    image, logits = image_tensors(spec)
    return Bundle(
        root=folder, name="residual", input=spec, inputs=(image,), outputs=(logits,), class_output=LOGITS,
        variants=variants, samples=(), labels=(), files={}, versions={}, commands=[], created="",
    )  # fmt: skip


def logits(
    bundle: Bundle, variant: str, backend: str, images: npt.NDArray[np.float32], emulate: bool = False
) -> npt.NDArray[np.float32]:
    with open_runner(bundle, variant, backend, threads=1, emulate=emulate) as runner:
        return runner.infer({"image": images})["logits"]


@pytest.mark.parametrize("variant", FORMS)
def test_as_written_it_gives_the_logits_of_onnx_runtime(residual: Bundle, variant: str) -> None:
    images = residual_graph.images(5, 64)
    expected = logits(residual, variant, "onnxruntime", images, emulate=True)
    found = logits(residual, variant, "openvino", images, emulate=True)
    same = np.isclose(found, expected, rtol=1e-4, atol=1e-4).all(axis=1)
    # A sum in another order turns a rounding in an image or two; in bfloat16 all of FP32 would differ.
    assert same.mean() >= (1.0 if variant == "fp32" else 0.9)


def test_as_it_runs_it_is_as_near_to_fp32(residual: Bundle) -> None:
    """It leaves out roundings between kernels that it joins, so the logits are not those of the file."""
    images = residual_graph.images(5, 64)
    fp32 = logits(residual, "fp32", "onnxruntime", images)
    np.testing.assert_allclose(logits(residual, "fp32", "openvino", images), fp32, rtol=1e-4, atol=1e-4)
    for variant in ("s8", "u8"):
        written = np.linalg.norm(logits(residual, variant, "onnxruntime", images, emulate=True) - fp32)
        run = np.linalg.norm(logits(residual, variant, "openvino", images) - fp32)
        assert 0.5 * written < run < 1.1 * written, variant


def test_the_integer_kernels_run_unless_emulated(residual: Bundle) -> None:
    for variant in ("s8", "u8"):
        kinds = []
        for emulate in (False, True):
            compiled, _ = compile_model(residual.path(variant), 1, emulate)
            nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
            layers = [n for n in nodes if n["layerType"].astype(str) == "Convolution"]
            kinds.append({str(n["runtimePrecision"].astype(str)) for n in layers})
        assert kinds[0] <= {"i8", "u8"}, variant
        assert kinds[1] == {"f32"}, variant


def test_what_it_says_of_itself(shared: Bundle) -> None:
    with open_runner(shared, "int8", "openvino", threads=1) as runner:
        (image,), (out,) = runner.inputs, runner.outputs
        assert (str(image), image.name) == (f"float32 N x 3 x {SIZE} x {SIZE}", "image")
        assert (str(out), out.name) == ("float32 N x 2", "logits")
        assert (runner.backend, runner.threads) == ("openvino", 1)
        assert runner.backend_version == ".".join(runner.backend_version.split(".")[:3])
        assert runner.backend_version in str(describe_machine()["versions"]["openvino"])


def test_any_batch_and_an_answer_that_stays(shared: Bundle) -> None:
    images = np.random.default_rng(0).normal(size=(5, 3, SIZE, SIZE)).astype(np.float32)
    with open_runner(shared, "fp32", "openvino", threads=1) as runner:
        five = runner.infer({"image": images})["logits"]
        kept = five.copy()
        one = runner.infer({"image": images[3:4]})["logits"]
        backwards = runner.infer({"image": images[::-1]})["logits"]
        images.setflags(write=False)
        np.testing.assert_array_equal(runner.infer({"image": images})["logits"], kept)
        np.testing.assert_array_equal(five, kept)
        np.testing.assert_allclose(one, five[3:4], rtol=1e-6)
        np.testing.assert_allclose(backwards, five[::-1], rtol=1e-6)
        with pytest.raises(LabError, match="is float64 1 x 3 x 8 x 8, must be float32 N x 3 x 8 x 8"):
            runner.infer({"image": images[:1].astype(np.float64)})


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_queries_in_flight_get_their_own_answers(shared: Bundle, backend: str) -> None:
    if usable_cores() < 2:
        pytest.skip("needs two cores")
    rng = np.random.default_rng(0)
    feeds = [{"image": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)} for _ in range(40)]
    with (
        open_runner(shared, "fp32", backend, threads=2) as one,
        open_runner(shared, "fp32", backend, threads=2, in_flight=2) as two,
        ThreadPoolExecutor(2) as callers,
    ):
        assert two.threads == one.threads
        for feed, got in zip(feeds, callers.map(two.infer, feeds), strict=True):
            np.testing.assert_allclose(got["logits"], one.infer(feed)["logits"], rtol=1e-5, atol=1e-6)


def test_a_model_of_a_fixed_batch(tmp_path: Path) -> None:
    with open_runner(tiny_bundle(tmp_path, batch=4), "fp32", "openvino", threads=1) as runner:
        assert runner.inputs[0].shape[0] == 4
        with pytest.raises(LabError, match="has batch 3, the model was exported for batch 4 only"):
            runner.infer({"image": np.zeros((3, 3, SIZE, SIZE), np.float32)})


def test_what_it_cannot_open_is_told(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    bundle.path("fp32").write_bytes(b"not a model")
    with pytest.raises(LabError, match=r"fp32\.onnx: OpenVINO 20.* cannot open it \(.*the model is correct"):
        open_runner(bundle, "fp32", "openvino")
    model = onnx.load(tiny_onnx(tmp_path / "c.onnx"))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Strange", "some.where"
    onnx.save(model, bundle.path("fp32"))
    with pytest.raises(LabError, match=r"operations: some\.where\.Strange\); update openvino"):
        open_runner(bundle, "fp32", "openvino")


def test_bench_measures_it_and_its_memory(shared: Bundle, tmp_path: Path) -> None:
    out, photos = tmp_path / "results.jsonl", shared.root.parent / "photos"
    quick = ["--seconds", "0.003", "--warmup", "0", "--threads", "1", "--batch", "2"]
    arguments = [str(shared.root), "--images", str(photos), "--out", str(out), *quick]
    assert main(["bench", *arguments, "--backend", "openvino", "--variant", "int8"]) == 0
    found = read_measurements(out)
    assert [(m.kind, m.backend, m.variant) for m in found] == [
        ("latency", "openvino", "int8"),
        ("throughput", "openvino", "int8"),
    ]
    assert {m.accuracy.top1 for m in found} == {1.0}
    assert all(m.peak_memory_mib is None or 20 < m.peak_memory_mib < 2000 for m in found)
    (row,) = rows(found)
    assert (row.name, row.throughput) == ("int8", found[1])


def test_what_was_made_for_one_cpu_backend_is_for_all(shared: Bundle) -> None:
    fp32, int8 = shared.variants
    device = replace(int8, name="device", backend="tensorrt")
    half = replace(device, name="half", precision="fp16")
    bundle = replace(shared, variants=(fp32, int8, device, half))
    assert made_for(bundle, "onnxruntime") == ["fp32", "int8"]
    assert made_for(bundle, "openvino") == ["fp32", "int8", "device"]
    assert made_for(bundle, "tensorrt") == ["fp32", "device", "half"]
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(
            LabError, match=f"no variant of tiny was made for {backend}, only for .'tensorrt'"
        ):
            made_for(replace(shared, variants=(half,)), backend)


def test_verify_compares_it_with_what_the_bundle_says(
    shared: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(shared.root), "--backend", "openvino"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok"] * 5


def test_a_signal_after_two_models_are_closed_reaches_its_handler(residual: Bundle) -> None:
    """On a CPU with AMX two of OpenVINO's cores left a freed stack for signals: Ctrl-C was a crash."""
    code = """
import signal, sys
from pathlib import Path
from deploy.ov import compile_model
first, second = (compile_model(Path(sys.argv[1]), 1, False)[0] for _ in range(2))
del first
del second
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
signal.raise_signal(signal.SIGUSR1)
"""
    done = python("-c", code, str(residual.path("fp32")))
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
