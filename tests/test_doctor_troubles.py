"""The doctor on what users run into, and on what of a bundle can run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.interpreter import Interpreter, Library
from deploy.manifest import Bundle, Variant
from tests.device_trees import agx_orin, orin_nano
from tests.doctor_python import interpreter, looked, tensorrt
from tests.machine_trees import bare_vm, cpuinfo
from tests.system_tree import devfreq, memory
from tests.test_deploy_bundle import tiny_bundle


@pytest.mark.parametrize(
    ("python", "text", "remedy"),
    [
        (interpreter("3.12.1", environment=True), "for the system's Python 3.10, and this is 3.12.1",
         "python3.10 -m venv --system-site-packages"),
        (interpreter("3.10.12", environment=True), "which this environment does not see",
         "python3 -m venv --system-site-packages"),
        (interpreter(tensorrt=Library(None, "libnvinfer.so.10: cannot open")),
         "cannot be loaded: libnvinfer.so.10", "of the same version"),
        (interpreter(tensorrt=Library("10.3.0", None, {"fault": "TypeError: null"})), "cannot start here",
         "--runtime nvidia"),
        (interpreter(tensorrt=tensorrt("8.6.1")), "8.6.1 is older than 10.0", "flash JetPack 6.1"),
    ],
    ids=["other Python", "closed environment", "no library", "no driver", "too old"],
)  # fmt: skip
def test_why_tensorrt_is_not_usable(tmp_path: Path, python: Interpreter, text: str, remedy: str) -> None:
    diagnosis, findings = looked(tmp_path, orin_nano(), python)
    found = findings["tensorrt"]
    assert found.status == "PROBLEM"
    assert text in found.text
    assert remedy in (found.remedy or "")
    assert diagnosis.backends["tensorrt"] == found.text


def test_a_jetson_without_any_tensorrt_is_told_the_package(tmp_path: Path) -> None:
    files = {name: text for name, text in orin_nano().items() if "tensorrt" not in name}
    _, findings = looked(tmp_path, files)
    assert findings["tensorrt"].text == "no Python module (libnvinfer 10.3.0.30-1+cuda12.5 is there)"
    assert findings["tensorrt"].remedy == "sudo apt install python3-libnvinfer"
    del files["var/lib/dpkg/status"]
    _, findings = looked(tmp_path / "bare", files)
    assert findings["tensorrt"].remedy == "sudo apt install nvidia-jetpack"


@pytest.mark.parametrize(
    ("version", "cores", "words"),
    [
        ("10.16.2", 0, "2 cores in hardware, TensorRT reports none"),
        ("10.16.2", 2, "the table's word is for TensorRT 11.4, and this is 10.16.2"),
    ],
)
def test_dla_of_a_tensorrt_that_is_not_the_jetpacks(
    tmp_path: Path, version: str, cores: int, words: str
) -> None:
    python = interpreter("3.12.3", tensorrt=tensorrt(version, cores))
    _, findings = looked(tmp_path, agx_orin("7.2.2"), python)
    assert findings["dla"].status == "note"
    assert words in findings["dla"].text


def test_a_jetpack_before_6_1_is_a_problem(tmp_path: Path) -> None:
    release = {"etc/nv_tegra_release": "# R36 (release), REVISION: 3.0, GCID: 1, BOARD: generic\n"}
    files = {name: text for name, text in orin_nano().items() if name != "var/lib/dpkg/status"} | release
    _, findings = looked(tmp_path, files, interpreter(tensorrt=tensorrt("8.6.2")))
    assert findings["jetpack"].status == "PROBLEM"
    assert findings["jetpack"].text.startswith("JetPack 6.0, Jetson Linux 36.3.0 is older than JetPack 6.1")


@pytest.mark.parametrize(
    ("revision", "row"), [("4.0", "6.1"), ("4.3", "6.2"), ("4.7", "6.2"), ("5.2", "6.2.2"), ("9.0", None)]
)
def test_a_patch_release_is_looked_up_as_what_it_patches(
    tmp_path: Path, revision: str, row: str | None
) -> None:
    release = {"etc/nv_tegra_release": f"# R36 (release), REVISION: {revision}, GCID: 1\n"}
    _, findings = looked(tmp_path, orin_nano() | release)
    assert findings["jetpack"].facts.get("row") == row
    assert findings["jetpack"].status == ("ok" if row else "note")


def test_a_power_mode_that_was_not_applied(tmp_path: Path) -> None:
    """As after a start at which nvpmodel.service failed."""
    free = devfreq("17000000.gpu", 306000000, 306000000, 1020000000)
    _, findings = looked(tmp_path, orin_nano() | free)
    assert findings["power_mode"].text.startswith(
        "15W by nvpmodel's status, but the GPU's highest clock is 1020"
    )
    assert findings["power_mode"].remedy == "sudo nvpmodel -m 0"


def test_targets_that_cannot_be_read_are_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    _, findings = looked(tmp_path, orin_nano(), interpreter(tensorrt=tensorrt("10.3.0")))
    assert "pip install pyyaml" in findings["machine"].text
    assert findings["jetpack"].text.endswith("no table to look it up in, see machine")
    assert findings["power_mode"].text == (
        "15W; MAXN_SUPER is the fastest of 15W (0), 25W (1), MAXN_SUPER (2), 7W (3)"
    )
    assert findings["tensorrt"].facts["usable"] is True


def test_little_memory_and_no_swap_are_told(tmp_path: Path) -> None:
    _, findings = looked(tmp_path, orin_nano() | memory(7_800_000, 900_000))
    assert (findings["memory"].status, findings["swap"].status) == ("note", "note")
    assert "isolate multi-user.target" in (findings["memory"].remedy or "")
    assert "swapon" in (findings["swap"].remedy or "")


def test_a_cpu_without_int8_instructions_is_told(tmp_path: Path) -> None:
    _, findings = looked(tmp_path, bare_vm() | cpuinfo("Intel(R) Core(TM) i5-4590", "fpu avx2"))
    assert "no INT8 dot product" in findings["machine"].text


def variant(name: str, precision: str, backend: str) -> Variant:
    return Variant(name, f"models/{name}.onnx", precision, backend, 6, {}, {})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    several = (
        variant("fp32", "fp32", "onnxruntime"),
        variant("int8", "int8", "tensorrt"),
        variant("int8-cpu", "int8", "onnxruntime"),
        variant("int8-dla", "int8", "tensorrt-dla"),
        variant("bf16", "bf16", "tensorrt"),
    )
    return replace(tiny_bundle(tmp_path / "made"), variants=several)


def test_what_of_a_bundle_can_run_on_a_jetson(tmp_path: Path, bundle: Bundle) -> None:
    diagnosis, findings = looked(tmp_path, orin_nano(), interpreter(tensorrt=tensorrt("10.3.0")), bundle)
    told = {
        one.name: [name for name, reason in one.backends.items() if reason is None]
        for one in diagnosis.variants
    }
    assert told == {
        "fp32": ["onnxruntime", "tensorrt"],
        "int8": ["onnxruntime", "tensorrt"],
        "int8-cpu": ["onnxruntime"],
        "int8-dla": [],
        "bf16": ["tensorrt"],
    }
    text = " ".join(str(diagnosis).split())
    assert "ok fp32 fp32 by onnxruntime, tensorrt" in text
    assert "note int8-dla int8, made for tensorrt-dla, cannot run here." in text
    assert "Can run here: fp32, int8, int8-cpu, bf16." in text
    assert findings["disk"].facts["folder"] == f"{bundle.root}.engines"


def test_what_of_a_bundle_can_run_on_a_cpu(tmp_path: Path, bundle: Bundle) -> None:
    diagnosis, _ = looked(tmp_path, bare_vm(), interpreter("3.11.2"), bundle)
    (int8,) = (one for one in diagnosis.variants if one.name == "int8")
    assert str(int8) == (
        "int8 by onnxruntime; made for tensorrt, which cannot run it here: no NVIDIA GPU here"
    )
    assert diagnosis.can_run
    only = replace(bundle, variants=(variant("bf16", "bf16", "tensorrt"),))
    diagnosis, _ = looked(tmp_path / "again", bare_vm(), interpreter("3.11.2"), only)
    assert not diagnosis.can_run
    assert "Nothing of this bundle can run here." in str(diagnosis)
