"""One class for TensorRT 10, 11 and RTX: what it finds, what it refuses, and what it never touches."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from deploy.build_phases import Phases
from deploy.errors import LabError
from deploy.trt_api import TensorRT, find_tensorrt
from tests.engines import real_rtx
from tests.fake_tensorrt import fake
from tests.processes import ROOT
from tests.tensorrt_record import REMOVED, recorded

VERSIONS = ["10.3.0", "10.16.2", "11.4.0"]
SOURCES = sorted(ROOT.glob("deploy/*.py"))


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """These modules and no other TensorRT."""
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, modules.get(name))


def rtx() -> Any:
    module = fake("1.7.1")
    module.__name__ = "tensorrt_rtx"
    return module


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_nothing_that_11_removed_stands_in_the_source(source: Path) -> None:
    words = set(re.findall(r"\.([A-Za-z_]\w*)", source.read_text()))
    assert words & (REMOVED - {"precision"}) == set()  # a word of our own; of a layer the mock refuses it


def test_the_mock_raises_on_what_was_removed() -> None:
    module = fake("11.4.0")
    for touch in (
        lambda: module.BuilderFlag.FP16,
        lambda: module.IInt8EntropyCalibrator2,
        lambda: module.Builder(module.ILogger()).platform_has_fast_int8,
        lambda: hasattr(module.Builder(module.ILogger()).create_builder_config(), "int8_calibrator"),
    ):
        with pytest.raises(AssertionError, match="which TensorRT 11 has no more"):
            touch()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_mock_has_no_name_that_the_real_module_has_not(version: str) -> None:
    module = fake(version)
    own = {"logger", "content", "layers", "inputs", "network", "pools", "flags", "profiles", "engine", "cuda"}
    for name, kind in module.recorded.items():
        ours = {n for n in vars(kind) if not n.startswith("_")}
        assert ours - recorded(name, version) - own == set(), name
    assert {"Builder", "ILogger", "MemoryPoolType"} <= recorded("module", version)


def test_a_flag_that_is_gone_is_not_asked_for() -> None:
    module = fake("11.4.0")
    del module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    asked: list[int] = []

    class Builder:
        def create_network(self, flags: int) -> None:
            asked.append(flags)

    TensorRT(module).network(Builder())  # type: ignore[arg-type]  # all that is called
    assert asked == [0]


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_where_tensorrt_cannot_start_its_words_are_told(kind: str) -> None:
    module = fake("10.3.0")

    class Null:
        def __init__(self, logger: Any) -> None:
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    setattr(module, kind, Null)
    api = TensorRT(module)
    with pytest.raises(LabError, match=r"TensorRT 10\.3\.0 cannot start here: CUDA initialization failure"):
        api.builder() if kind == "Builder" else api.runtime


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_gives_strongly_typed_networks(version: str) -> None:
    api = TensorRT(fake(version))
    builder = api.builder()
    assert api.network(builder).num_layers == 0  # the mock asserts on the flag
    assert str(api) == f"TensorRT {version}"
    assert api.config(builder).profiling_verbosity == "DETAILED"
    assert not api.rtx


def test_the_first_of_several_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=fake("10.3.0"), tensorrt_rtx=rtx())
    assert str(find_tensorrt()) == "TensorRT 10.3.0"
    install(monkeypatch, tensorrt_rtx=rtx())
    assert str(find_tensorrt()) == "TensorRT-RTX 1.7.1"


def test_a_folder_of_stubs_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=ModuleType("tensorrt"), tensorrt_rtx_bindings=rtx())
    assert find_tensorrt().version == "1.7.1"


def test_absent_it_is_told_how_jetpack_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(LabError, match=r"python3-libnvinfer.*--system-site-packages"):
        find_tensorrt()


def test_jetpack_5_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tensorrt=fake("8.5.2"))
    with pytest.raises(LabError, match=r"TensorRT 8.5.2 is too old: 10.0 is the least.*int8-cpu"):
        find_tensorrt()


def test_a_module_without_its_libraries_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_of_a_test.py").write_text("raise OSError('libnvinfer.so.10: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LabError, match=r"cannot be loaded \(libnvinfer.so.10: cannot open\)"):
        find_tensorrt(["tensorrt_of_a_test"])


@pytest.mark.parametrize("version", VERSIONS)
def test_timings_of_another_version_are_left_aside(version: str) -> None:
    module = fake(version)
    api = TensorRT(module)
    config = api.config(api.builder())
    for content in (b"timings of 9.9", f"timings of {version}".encode(), b""):
        assert api.timing_cache(config, content) is not None
    assert module.timings == [b"timings of 9.9", b"", f"timings of {version}".encode(), b""]


def test_only_rtx_builds_for_other_gpus() -> None:
    with pytest.raises(LabError, match=r"8\.6: TensorRT 10\.3\.0 builds for this machine's own GPU only"):
        TensorRT(fake("10.3.0")).check_capabilities(["8.6"])
    real = real_rtx()
    real.check_capabilities(["8.6", "12.0"])
    with pytest.raises(
        LabError, match=r"compute capability 8\.7, sm89: TensorRT-RTX .* builds for 7\.5, 8\.0"
    ):
        real.check_capabilities(["8.6", "8.7", "sm89"])
    with pytest.raises(LabError, match=r"8\.6, 8\.6: name each once"):
        real.check_capabilities(["8.6", "8.6"])


def test_rtx_builds_for_the_gpu_that_is_there_or_says_that_it_cannot() -> None:
    real = real_rtx()
    assert real.capabilities_for("7.5") == ("7.5",)  # without a word it leaves this one out
    assert real.capabilities_for("13.0") == ()
    with pytest.raises(LabError, match=r"9\.0: TensorRT-RTX .* has no engines for it, only for 7\.5"):
        real.capabilities_for("9.0")
    assert TensorRT(fake("10.3.0")).capabilities_for("9.0") == ()


def test_rtx_compiles_its_kernels_before_the_first_query() -> None:
    """Else it does so beside the first ones, and a CUDA graph would keep the general kernels."""
    module, settings = rtx(), SimpleNamespace()
    module.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    engine = SimpleNamespace(create_runtime_config=lambda: settings, create_execution_context=lambda s: s)
    context: Any = TensorRT(module).context(engine)
    assert context is settings
    assert settings.dynamic_shapes_kernel_specialization_strategy == "eager"


@pytest.mark.parametrize("version", VERSIONS)
def test_types_that_numpy_has_are_named(version: str) -> None:
    api = TensorRT(fake(version))

    class Kind:
        name = "HALF"

    assert api.dtype(Kind(), "image") == "float16"
    Kind.name = "BF16"
    with pytest.raises(LabError, match=r"'image' is BF16, which numpy does not know: export the model with"):
        api.dtype(Kind(), "image")


def told(phases: Phases, *events: tuple[str, str, int]) -> None:
    """Start, step and finish of phases, as TensorRT calls them."""
    for what, name, number in events:
        if what == "step":
            phases.step(name, number)
        elif what == "finish":
            phases.finish(name)
        else:
            phases.start(name, what or None, number)


def test_phases_within_phases_become_one_bar() -> None:
    done: list[float] = []
    phases = Phases(done.append)
    told(phases, ("", "build", 4), ("step", "build", 0), ("build", "part", 2), ("step", "part", 0))
    assert sum(done) == pytest.approx(1 / 4 + 1 / 8)
    told(phases, ("part", "deep", 2), ("step", "deep", 0))
    assert sum(done) == pytest.approx(1 / 4 + 1 / 8 + 1 / 16)
    told(phases, ("finish", "deep", 0), ("finish", "part", 0), ("step", "build", 1), ("step", "gone", 3))
    assert sum(done) == pytest.approx(1 / 2)
    told(phases, ("build", "part", 2), ("step", "build", 3), ("step", "part", 0))
    assert sum(done) == pytest.approx(1)
    assert min(done) > 0
