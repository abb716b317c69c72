"""When an engine is taken from the cache, when and why it is built anew, and what is never half-written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.bundle import Bundle, open_bundle
from deploy.cuda import Cuda
from deploy.engine import BuiltEngine, Target, check_engine, find_target, ready_engine
from deploy.engine_build import BuildOptions
from deploy.engine_cache import read_record, record_path
from deploy.errors import LabError
from tests.engines import engines, lock, mocked, rtx, say_nothing
from tests.fake_cuda import FakeCuda
from tests.fake_inspector import layers_json
from tests.test_deploy_bundle import tiny_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("made"))


@pytest.fixture
def bundle(made: Bundle, tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(made.root, tmp_path / "bundle"))


def ready(
    bundle: Bundle,
    target: Target,
    options: BuildOptions | None = BuildOptions(),  # noqa: B008  # frozen
    say: Callable[[str], None] = say_nothing,
    **more: Any,
) -> BuiltEngine:
    return ready_engine(bundle, "int8", target, options, say, lock=lock(bundle.root.parent), **more)


def test_a_real_engine_is_built_once_and_the_bundle_stays_whole(bundle: Bundle) -> None:
    target = rtx("8.6", "8.9")
    first = ready(bundle, target)
    assert first.built
    assert first.path == bundle.root.with_name("bundle.engines") / "int8.sm8.6-sm8.9.engine"
    content = first.path.read_bytes()
    again = ready(bundle, target)
    assert not again.built
    assert again.record == first.record
    assert first.path.read_bytes() == content
    assert len(content) == first.record.engine_bytes
    assert first.record.precision is None
    assert open_bundle(bundle.root) == bundle
    assert engines(bundle) == ["int8.sm8.6-sm8.9.engine", "int8.sm8.6-sm8.9.engine.json"]


def test_each_reason_for_a_new_engine_is_said(bundle: Bundle) -> None:
    path = ready(bundle, mocked("10.3.0")[2]).path
    said: list[str] = []

    def again(target: Target, options: BuildOptions = BuildOptions(), **more: Any) -> list[str]:  # noqa: B008
        said.clear()
        assert ready(bundle, target, options, said.append, **more).built
        return said

    assert again(mocked("10.16.2")[2]) == ["int8: TensorRT 10.3.0 -> 10.16.2: building anew"]
    assert again(mocked("10.16.2", capability=(8, 9))[2]) == [
        "int8: Fake Orin (compute capability 8.7) -> Fake Orin (compute capability 8.9): building anew"
    ]
    target = mocked("10.16.2", capability=(8, 9))[2]
    assert again(target, BuildOptions((1, 4, 8), tf32=False)) == [
        "int8: batch [1, 1, 32] -> [1, 4, 8]: building anew",
        "int8: tf32 True -> False: building anew",
    ]
    assert again(target)[-1] == "int8: tf32 False -> True: building anew"
    record_path(path).write_text(
        record_path(path).read_text().replace(bundle.files["models/int8.onnx"], "0" * 64)
    )
    assert "the ONNX file changed (SHA-256 000000000000 -> " in again(target)[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert "the engine file is damaged" in again(target)[0]
    record_path(path).unlink()
    assert "no record of an engine" in again(target)[0]
    record_path(path).write_text("{}")
    assert "no record of an engine ('schema')" in again(target)[0]
    assert again(target, force=True) == ["int8: asked for: building anew"]


def test_whoever_only_runs_takes_any_options(bundle: Bundle) -> None:
    target = mocked()[2]
    made = ready(bundle, target, BuildOptions((1, 4, 64)))
    assert ready(bundle, target, None).record == made.record
    assert not ready(bundle, target, None).built
    said: list[str] = []
    again = ready(bundle, mocked("10.16.2")[2], None, said.append)
    assert again.built
    assert again.record.batch == (1, 4, 64), "an update of TensorRT does not change what was chosen"
    assert said == ["int8: TensorRT 10.3.0 -> 10.16.2: building anew"]


def test_a_record_with_other_flags_is_built_anew_by_the_defaults(bundle: Bundle) -> None:
    target = mocked()[2]
    path = record_path(ready(bundle, target).path)
    raw = json.loads(path.read_text())
    raw["key"]["flags"] = {"batch": [1]}
    path.write_text(json.dumps(raw))
    said: list[str] = []
    assert ready(bundle, target, None, said.append).record.batch == (1, 1, 32)
    assert said[0] == "int8: batch [1] -> [1, 1, 32]: building anew"


def test_engines_of_two_devices_live_side_by_side(bundle: Bundle) -> None:
    for name in ("Orin", "NVIDIA H100 80GB HBM3"):
        assert ready(bundle, mocked(name=name)[2]).built
    assert [name for name in engines(bundle) if name.endswith(".engine")] == [
        "int8.nvidia-h100-80gb-hbm3.engine",
        "int8.orin.engine",
    ]
    assert not ready(bundle, mocked(name="Orin")[2]).built


def test_the_folder_can_be_named(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = mocked()[2]
    assert ready(bundle, target, cache=tmp_path / "a" / "b").path.parent == tmp_path / "a" / "b" / "tiny"
    monkeypatch.setenv("EDGELAB_ENGINES", str(tmp_path / "c"))
    assert ready(bundle, target).path.parent == tmp_path / "c" / "tiny"
    assert ready(bundle, target, cache=tmp_path / "d").path.parent == tmp_path / "d" / "tiny"
    assert engines(bundle) == []


def test_the_record_says_what_the_layers_run_in(bundle: Bundle) -> None:
    module, _, target = mocked()
    rows = [("pooled", "CaskPooling", ["Row major Int8 format"], ["Row major Int8 format"], None, "pooled")]
    module.inspector = layers_json(10, rows)
    made = ready(bundle, target)
    assert made.record.precision is not None
    assert made.record.precision.layers == {"int8": 1}
    assert read_record(made.path) == made.record


def test_an_inspector_that_is_not_understood_costs_only_a_warning(bundle: Bundle) -> None:
    module, _, target = mocked()
    module.inspector = "Layers: none"
    said: list[str] = []
    assert ready(bundle, target, say=said.append).record.precision is None
    assert said[0].startswith("WARNING: TensorRT's inspector gave no table of layers")


def test_timings_are_kept_for_the_next_build(bundle: Bundle) -> None:
    module, _, target = mocked()
    ready(bundle, target)
    ready_engine(bundle, "fp32", target, None, say_nothing, lock=lock(bundle.root.parent))
    assert module.timings == [b"", b"timings of 10.3.0"]
    assert "tensorrt-10.3.0.fake-orin.timing" in engines(bundle)


@pytest.mark.parametrize("integrated", [True, False])
def test_the_workspace_follows_the_free_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, integrated: bool
) -> None:
    monkeypatch.setattr("deploy.engine.available_memory_bytes", lambda: 6 << 30)
    module, _, target = mocked(integrated=integrated, memory=5 << 30)
    ready(bundle, target)
    ready(bundle, target, BuildOptions(workspace_mib=100), lambda text: None)
    expected = 3 << 30 if integrated else 5 << 30
    assert [config.pools["WORKSPACE"] for config in module.configs] == [expected, 100 << 20]


def test_a_failed_build_leaves_what_was_there(bundle: Bundle) -> None:
    before = ready(bundle, mocked("10.3.0")[2])
    module, _, target = mocked("10.16.2")
    module.build_error = "Error Code 2: OutOfMemory"
    files = engines(bundle)
    with pytest.raises(LabError, match="ran out of memory"):
        ready(bundle, target, say=lambda text: None)
    assert engines(bundle) == files
    assert not ready(bundle, mocked("10.3.0")[2]).built
    assert before.path.is_file()


def test_a_full_disk_and_a_folder_that_cannot_be_written_are_told(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = mocked()[2]
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="no engine can be written there"):
        ready(bundle, target, cache=tmp_path / "file" / "engines")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    with pytest.raises(LabError, match=r"1 MiB are free, an engine may take 16 MiB.*--cache"):
        ready(bundle, target)
    monkeypatch.undo()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LabError, match="No space left on device"):
        ready(bundle, target)
    assert engines(bundle) == []


def test_an_engine_given_by_its_file_is_checked_against_this_machine(bundle: Bundle) -> None:
    made = ready(bundle, mocked("10.3.0")[2])
    assert check_engine(made.path, mocked("10.3.0")[2]) == made.record
    with pytest.raises(
        LabError, match=r"does not run here: TensorRT 10\.3\.0 -> 11\.4\.0; Fake Orin"
    ) as told:
        check_engine(made.path, mocked("11.4.0", name="Thor")[2])
    assert "Thor (compute capability 8.7)" in str(told.value)
    assert "build it here, from the bundle" in str(told.value)
    made.path.write_bytes(b"x")
    with pytest.raises(LabError, match="is damaged"):
        check_engine(made.path, mocked("10.3.0")[2])
    with pytest.raises(LabError, match="no such engine; build it with"):
        check_engine(made.path.with_name("other.engine"), mocked()[2])


def test_bf16_is_not_built_for_a_gpu_without_it(bundle: Bundle) -> None:
    variants = tuple(replace(v, precision="bf16") for v in bundle.variants)
    with pytest.raises(
        LabError, match=r"variant int8: BF16 needs compute capability 8.0 or more, .* for 7.5:"
    ):
        ready(replace(bundle, variants=variants), rtx("7.5", "8.6"))


def test_without_a_driver_the_gpus_elsewhere_are_named() -> None:
    with pytest.raises(LabError, match="shows no NVIDIA GPU") as told:
        mocked(num_devices=0)
    assert "--compute-capability" not in str(told.value)
    target = rtx("8.6")
    with pytest.raises(LabError, match=r"TensorRT-RTX .* builds without a GPU.*--compute-capability 8.6"):
        find_target(target.api, Cuda(FakeCuda(num_devices=0)))


def test_a_gpu_that_rtx_has_no_engines_for_is_refused_before_anything_is_built() -> None:
    with pytest.raises(LabError, match=r"compute capability 9\.0: TensorRT-RTX .* has no engines for it"):
        find_target(rtx("8.6").api, Cuda(FakeCuda(capability=(9, 0))))


def test_rtx_is_told_the_gpu_that_is_there(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BuiltError(Exception):
        pass

    def build(*_: Any, compute_capabilities: tuple[str, ...], **__: Any) -> None:
        raise BuiltError(*compute_capabilities)

    monkeypatch.setattr("deploy.engine.build_plan", build)
    target = find_target(rtx("8.6").api, Cuda(FakeCuda(capability=(7, 5))))
    with pytest.raises(BuiltError, match=r"^7\.5$"):
        ready_engine(bundle, "int8", target, None, say_nothing, lock=lock(tmp_path))


def test_what_was_built_while_waiting_is_taken(bundle: Bundle) -> None:
    """The other process has built this very engine when the lock comes free."""
    target = mocked()[2]
    path = lock(bundle.root.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        made = bundle.root.parent / "made"
        ready_engine(bundle, "int8", target, None, print, cache=made, lock=bundle.root.parent / "other.lock")
        for file in made.glob("tiny/int8.*"):
            shutil.copy(file, bundle.root.with_name("bundle.engines"))
        os.close(descriptor)

    assert not ready(bundle, target, say=say).built
    assert "waits until another process has built" in said[0]


def test_the_record_is_plain_json(bundle: Bundle) -> None:
    made = ready(bundle, mocked()[2])
    raw = json.loads(record_path(made.path).read_text())
    assert raw["key"] == {
        "onnx_sha256": bundle.files["models/int8.onnx"],
        "tensorrt": "TensorRT 10.3.0",
        "device": "Fake Orin (compute capability 8.7)",
        "flags": {"batch": [1, 1, 32], "tf32": True, "workspace_mib": None},
    }
    assert raw["batch"] == [1, 1, 32]
    assert np.isfinite(raw["build_s"])
