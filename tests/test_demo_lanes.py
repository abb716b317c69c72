"""Which lanes there are, and which run where nobody chose. TensorRT and CUDA are the mocks of their tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from deploy.backends import best_backend, is_installed
from deploy.bundle import Bundle
from deploy.demo import lanes
from deploy.demo.lanes import choices, default_sides
from deploy.demo.pipeline import open_show
from deploy.demo.show import Lane
from deploy.demo.side import probabilities, top_guesses
from deploy.engine_cache import engines_folder
from deploy.errors import LabError
from deploy.manifest import Variant
from deploy.ort import session_options
from tests.demo_shows import until
from tests.engines import mocked
from tests.test_deploy_bundle import tiny_bundle


def variant(name: str, precision: str, backend: str) -> Variant:
    return Variant(name, f"models/{name}.onnx", precision, backend, 6, {}, {})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """With the three variants that quantising writes."""
    names = (
        ("fp32", "fp32", "onnxruntime"),
        ("int8", "int8", "tensorrt"),
        ("int8-cpu", "int8", "onnxruntime"),
    )
    return replace(tiny_bundle(tmp_path), variants=tuple(variant(*name) for name in names))


def having(monkeypatch: pytest.MonkeyPatch, *backends: str) -> None:
    monkeypatch.setattr(lanes, "is_installed", lambda backend: backend in backends)


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        (
            ("onnxruntime", "tensorrt"),
            [
                [("fp32", "tensorrt"), ("fp32", "onnxruntime")],
                [("int8", "tensorrt"), ("int8-cpu", "onnxruntime")],
            ],
        ),
        (("onnxruntime",), [[("fp32", "onnxruntime")], [("int8-cpu", "onnxruntime")]]),
        (("openvino",), [[("fp32", "openvino")], [("int8", "openvino")]]),
        (("tensorrt",), [[("fp32", "tensorrt")], [("int8", "tensorrt")]]),
        ((), []),
    ],
)
def test_fp32_and_int8_run_by_the_best_backend(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, backends: tuple[str, ...], expected: list[Any]
) -> None:
    having(monkeypatch, *backends)
    found = default_sides(bundle, choices(bundle))
    assert found == [[Lane(*pair) for pair in side] for side in expected]


def test_without_int8_another_variant_stands_beside_fp32(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    having(monkeypatch, "onnxruntime")
    half = variant("fp16", "fp16", "onnxruntime")
    with_half = replace(bundle, variants=(bundle.variants[0], half))
    assert default_sides(with_half, choices(with_half))[1] == [Lane("fp16", "onnxruntime")]
    alone = replace(bundle, variants=bundle.variants[:1])
    assert default_sides(alone, choices(alone)) == [[Lane("fp32", "onnxruntime")]]
    for_cpu = replace(bundle, variants=(bundle.variants[0], bundle.variants[2]))
    having(monkeypatch, "onnxruntime", "tensorrt")
    assert [side[0].backend for side in default_sides(for_cpu, choices(for_cpu))] == ["onnxruntime"] * 2
    no_float = replace(bundle, variants=bundle.variants[2:])
    assert default_sides(no_float, choices(no_float)) == [[Lane("int8-cpu", "onnxruntime")]]


def test_only_what_can_run_can_be_chosen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, "onnxruntime", "tensorrt")
    assert choices(bundle) == (
        Lane("fp32", "onnxruntime"), Lane("fp32", "tensorrt"), Lane("int8", "onnxruntime"),
        Lane("int8", "tensorrt"), Lane("int8-cpu", "onnxruntime"),
    )  # fmt: skip


def test_a_gpu_is_what_makes_tensorrt_count(monkeypatch: pytest.MonkeyPatch) -> None:
    module, cuda, target = mocked()
    monkeypatch.setattr("deploy.trt_api.find_tensorrt", lambda: target.api)
    monkeypatch.setattr("deploy.cuda.find_cuda", lambda: target.cuda)
    assert is_installed("tensorrt")
    assert best_backend() == "tensorrt"
    cuda.num_devices = 0
    assert not is_installed("tensorrt")
    assert is_installed("onnxruntime")
    assert best_backend() == "onnxruntime"
    assert module.__version__ == "10.3.0"


def test_tensorrt_runs_both_sides_also_on_a_full_disk_and_gives_way_to_the_cpu_where_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, target = mocked()
    for tensorrt, cuda in (("deploy.trt_api", "deploy.cuda"), ("deploy.trt", "deploy.trt")):
        monkeypatch.setattr(f"{tensorrt}.find_tensorrt", lambda: target.api)
        monkeypatch.setattr(f"{cuda}.find_cuda", lambda: target.cuda)
    monkeypatch.setattr("deploy.demo.pipeline.find_meter", lambda device: fails(f"no meter of the {device}"))
    tiny = tiny_bundle(tmp_path)
    bundle = replace(tiny, variants=(tiny.variants[0], replace(tiny.variants[1], backend="tensorrt")))
    image = np.full((9, 9, 3), (200, 30, 40), np.uint8)
    with open_show(bundle, "upload", threads=1) as show:
        both = (Lane("fp32", "tensorrt"), Lane("int8", "tensorrt"))
        assert (show.status().lanes, show.status().message) == (both, None)
        assert [answer.top[0].name for answer in show.classify(image).answers] == ["red", "red"]
        until(lambda: show.status().watts_missing == "no meter of the gpu")
    shutil.rmtree(engines_folder(bundle, None))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    with open_show(bundle, "upload", threads=1) as show:
        assert show.status().lanes == both
        assert show.classify(image).answers[0].top[0].name == "red"
    assert not list(engines_folder(bundle, None).glob("*.engine"))
    monkeypatch.setattr("deploy.trt.ready_engine", lambda *_, **__: fails("this network cannot be built"))
    with open_show(bundle, "upload", threads=1) as show:
        assert not [lane for lane in show.status().lanes if lane.backend == "tensorrt"]
        assert "fp32 (tensorrt): this network cannot be built" in (show.status().message or "")
        assert show.classify(image).answers[0].top[0].name == "red"


def fails(text: str) -> Any:
    raise LabError(text)


def test_logits_become_probabilities_and_probabilities_stay() -> None:
    logits = np.array([1000.0, 1001.0, -5.0], np.float32)
    found = probabilities(logits)
    assert found is not None
    assert found.tolist() == pytest.approx([0.26894, 0.73106, 0], abs=1e-4)
    given = np.array([0.7, 0.2, 0.1], np.float32)
    kept = probabilities(given)
    assert kept is not None
    assert kept.tolist() == pytest.approx([0.7, 0.2, 0.1])
    for wrong in (np.nan, np.inf):
        assert probabilities(np.array([1.0, wrong])) is None


def test_the_likeliest_five_come_first_and_one_without_a_name_has_its_number() -> None:
    chances = np.array([0.1, 0.3, 0.05, 0.05, 0.2, 0.3])
    found = top_guesses(chances, ["a", "b", "c", "d", "e"])
    assert [guess.name for guess in found] == ["b", "class 5", "e", "a", "c"]
    assert [guess.probability for guess in found] == [0.3, 0.3, 0.2, 0.1, 0.05]
    json.dumps([guess.probability for guess in found])


def test_the_threads_of_a_lane_rest_while_another_has_its_turn() -> None:
    entry = "session.force_spinning_stop"
    options = session_options(onnxruntime, 1, emulate=False, in_turn=True)
    assert options.get_session_config_entry(entry) == "1"
    with pytest.raises(Exception, match=entry):  # a benchmark's threads may wait busily
        session_options(onnxruntime, 1, emulate=False).get_session_config_entry(entry)


def test_both_lanes_are_opened_for_turns(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def opener(bundle: Bundle, variant: str, backend: str, **options: Any) -> Any:
        asked.append((variant, options))
        raise LabError("enough")

    monkeypatch.setattr("deploy.demo.side.open_runner", opener)
    lanes_wanted = [Lane("fp32", "onnxruntime"), Lane("int8-cpu", "onnxruntime")]
    with pytest.raises(LabError, match="enough"), open_show(bundle, "upload", lanes_wanted, 1):
        pass
    both = {"threads": 1, "in_turn": True}
    assert asked == [("fp32", both), ("int8-cpu", both)]
