"""The doctor on the trees of devices that are not at hand: what each is told of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import deploy.doctor
from deploy.finding import Finding
from deploy.interpreter import Interpreter, Library
from tests.device_trees import agx_orin, agx_xavier, jetson_nano, orin_nano, thor, xavier_nx
from tests.doctor_python import KEYS, interpreter, looked, tensorrt
from tests.machine_trees import bare_vm, workstation
from tests.system_tree import Files


@pytest.mark.parametrize(
    ("files", "python", "lines"),
    [
        (
            jetson_nano(), interpreter(),
            ["PROBLEM jetpack JetPack 4.6.1-b110, Jetson Linux 32.7.1: this module is out of scope",
             "its last JetPack is 4.6, with TensorRT 8.2",
             "ok power meter ina3221, POM_5V_IN, 10 a second: 1.8 W now",
             "ok power mode MAXN, the fastest of MAXN (0), 5W (1)", "Backends that work here: onnxruntime."],
        ),
        (
            xavier_nx(), interpreter(),
            ["ok machine NVIDIA Jetson Xavier NX Developer Kit", "target xavier_nx",
             "Jetson Linux 35.4.1: this module is out of scope, its last JetPack is 5, with TensorRT 8.5",
             "note tensorrt not usable here", "note dla 2 cores in hardware; out of scope"],
        ),
        (
            agx_xavier(), interpreter(),
            ["target agx_xavier", "PROBLEM jetpack JetPack 5, Jetson Linux 35.4.1",
             "GPU+CPU+SOC+CV+VDDRQ+SYS5V, 20 a second: 32.8 W now"],
        ),
        (
            orin_nano(), interpreter(tensorrt=tensorrt("10.3.0")),
            ["Developer Kit Super", "target orin_nano_8gb",
             "ok jetpack JetPack 6.2+b77, Jetson Linux 36.4.3;",
             "JetPack 6.2 brings TensorRT 10.3, CUDA 12.6, Python 3.10",
             "ok cuda toolkit 12.6.68, libcudart.so.12",
             "ok tensorrt 10.3.0; this GPU computes in int8, bf16",
             "ok dla none in Jetson Orin Nano 8GB",
             "note power mode 15W; MAXN_SUPER is the fastest of 15W (0), 25W (1), MAXN_SUPER (2), 7W (3)",
             "-> sudo nvpmodel -m 2",
             "note clocks CPU 730 of 1510 MHz, GPU 306 of 625 MHz, EMC's for root only; not locked,",
             "-> sudo jetson_clocks (until the next start)",
             "ok power meter ina3221, VDD_IN, 20 a second: 4.6 W now",
             "ok cameras /dev/video0 (HD Pro Webcam C920)",
             "ok programs gst-launch-1.0", "Backends that work here: onnxruntime, tensorrt. 2 notes."],
        ),
        (
            agx_orin(), interpreter(tensorrt=tensorrt("10.3.0", 2)),
            ["target agx_orin_64gb",
             "ok dla 2 cores in hardware. TensorRT 10.3 takes INT8 for DLA",
             "EMC 3199 of 3199 MHz, DLA0 1600 of 1600 MHz, DLA1 1600 of 1600 MHz; locked",
             "note throttling none now; since the start: 3 x instantaneous over-current (oc3_event_cnt)",
             "ina3221, VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0, 20 a second: 6.8 W now",
             "note cameras no /dev/video*; nvargus-daemon is not here"],
        ),
        (
            agx_orin("7.2.2"), interpreter("3.12.3", tensorrt=tensorrt("11.4.1", 2)),
            ["ok jetpack JetPack 7.2.2+b77, Jetson Linux 39.2.2;",
             "JetPack 7.2.2 brings TensorRT 11.4, CUDA 13.2",
             "ok tensorrt 11.4.1", "ok dla 2 cores in hardware. TensorRT 11.4.1, installed over"],
        ),
        (
            thor(), interpreter("3.12.3", tensorrt=tensorrt("10.13.3")),
            ["target thor_t5000", "JetPack 7.0-b128, Jetson Linux 38.2.0; JetPack 7.0 brings TensorRT 10.13",
             "ok dla none in Jetson T5000 (AGX Thor)", "ok power meter ina238, VIN, 10 a second: 15.0 W now",
             "PROBLEM throttling held back now by devfreq-gpu-gpc-0, gpu-throttle-alert;",
             "since the start: 179 x instantaneous over-current (oc3_event_cnt)"],
        ),
        (
            workstation(), interpreter("3.12.3", pynvml=Library()),
            ["12th Gen Intel(R) Core(TM) i7-12700K", "NVIDIA L4; target l4", "driver 570.86.15",
             "note tensorrt not installed; the card stays idle -> pip install tensorrt",
             "CPU: rapl, package-0, 20 a second",
             "governor powersave -> sudo cpupower frequency-set -g performance"],
        ),
        (
            bare_vm(), interpreter("3.11.2"),
            ["ok machine Intel(R) Xeon(R) Processor", "ok jetpack none: this is no Jetson",
             "ok tensorrt not needed: no NVIDIA GPU", "ok clocks the system does not tell them",
             "note power meter no joules per image: nothing here measures it", "ok throttling none",
             "Backends that work here: onnxruntime. 2 notes."],
        ),
    ],
    ids=[
        "nano", "xavier nx", "agx xavier", "orin nano", "agx orin", "agx orin 7.2.2", "thor", "pc", "vm",
    ],
)  # fmt: skip
def test_each_device_is_told_what_it_is(
    tmp_path: Path, files: Files, python: Interpreter, lines: list[str]
) -> None:
    diagnosis, _ = looked(tmp_path, files, python)
    text = str(diagnosis)
    assert max(map(len, text.splitlines())) <= 80
    plain = " ".join(text.split())
    assert [line for line in lines if line not in plain] == []
    assert diagnosis.can_run


def test_json_has_stable_keys_and_all_that_the_text_has(tmp_path: Path) -> None:
    diagnosis, findings = looked(tmp_path, orin_nano(), interpreter(tensorrt=tensorrt("10.3.0")))
    told = json.loads(diagnosis.to_json())
    assert set(told) == {"schema", "can_run", "backends", "bundle", "variants", "findings"}
    assert tuple(told["findings"]) == KEYS
    for key, finding in findings.items():
        assert told["findings"][key]["text"] == finding.text
        assert told["findings"][key]["status"] in ("ok", "note", "PROBLEM")
    assert told["findings"]["power_mode"]["facts"] == {
        "current": "15W", "fastest": "MAXN_SUPER", "modes": {"15W": 0, "25W": 1, "MAXN_SUPER": 2, "7W": 3},
    }  # fmt: skip
    assert told["findings"]["power_mode"]["remedy"] == "sudo nvpmodel -m 2"
    assert told["findings"]["power_meter"]["facts"]["all"]["rail"] == "VDD_IN"
    assert told["findings"]["machine"]["facts"]["target"] == "orin_nano_8gb"
    assert told["backends"] == {"onnxruntime": None, "tensorrt": None, "openvino": "not installed"}


@pytest.mark.parametrize("files", [jetson_nano(), orin_nano(), agx_orin(), thor(), workstation(), bare_vm()])
def test_every_problem_has_a_remedy(tmp_path: Path, files: Files) -> None:
    """On the worst interpreter that there is."""
    broken = interpreter("3.9.2", numpy=None, PIL=None, yaml=None, onnxruntime=None)
    diagnosis, findings = looked(tmp_path, files, broken)
    problems = [finding for finding in diagnosis.findings if finding.status == "PROBLEM"]
    assert {"python", "numpy", "images", "backends"} <= {finding.key for finding in problems}
    assert [finding.key for finding in problems if not finding.remedy] == []
    assert not diagnosis.can_run
    assert "No backend works here." in str(diagnosis)
    assert tuple(findings) == KEYS


def test_an_empty_system_is_looked_at_to_the_end(tmp_path: Path) -> None:
    diagnosis, findings = looked(tmp_path, {})
    assert tuple(findings) == KEYS
    assert findings["memory"].text == "unknown: /proc/meminfo does not say"
    assert diagnosis.can_run


@pytest.mark.parametrize("content", ["", "\0\0\0", "not a number\n", "9" * 5000, "{\n[", "pmode:99\n"])
def test_files_that_hold_nonsense_are_no_crash(tmp_path: Path, content: str) -> None:
    files = {name: content for name in orin_nano() | workstation() if not name.startswith(("usr/lib", "dev"))}
    files |= {name: text for name, text in orin_nano().items() if "device-tree" in name}
    _, findings = looked(tmp_path, files)
    assert tuple(findings) == KEYS


def test_a_probe_that_breaks_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: object) -> Finding:
        raise ZeroDivisionError("of a kind that nobody thought of")

    def half(*arguments: object) -> Iterator[Finding]:
        yield Finding("memory", "ok", "")
        raise OSError("Input/output error")

    monkeypatch.setattr(deploy.doctor, "probe_cameras", breaks)
    monkeypatch.setattr(deploy.doctor, "probe_memory", half)
    monkeypatch.setattr(deploy.doctor, "read_state", breaks)
    _, findings = looked(tmp_path, orin_nano())
    assert "ZeroDivisionError: of a kind that nobody thought of" in findings["cameras"].text
    assert "Input/output error" in findings["memory"].text
    assert "ZeroDivisionError" in findings["state"].text
    assert findings["programs"].status == "ok"
