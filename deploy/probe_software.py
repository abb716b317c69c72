"""The doctor on software: JetPack, CUDA, Python and its libraries, and with them the backends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from deploy.finding import Finding
from deploy.interpreter import Interpreter, Library
from deploy.jetpack import Release, package_version
from deploy.module import Module
from deploy.system_files import folders, read_text
from deploy.trt_api import NAMES as TENSORRT
from deploy.trt_api import OLDEST as OLDEST_TENSORRT

_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 12)
_VENV = "python3 -m venv --system-site-packages NAME, and use its python"


def probe_jetpack(module: Module, release: Release) -> Finding:
    if module.soc is None:
        return Finding(
            "jetpack", "ok", "none: this is no Jetson", facts={"jetpack": None, "jetson_linux": None}
        )
    facts = {"jetpack": release.package, "jetson_linux": release.linux}
    if release.linux is None:
        return Finding(
            "jetpack",
            "note",
            "unknown: /etc/nv_tegra_release is not here, as in most containers",
            "mount it: docker run -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro ...",
            facts,
        )
    words = f"{release.name}, Jetson Linux {release.linux}"
    if module.too_old:
        return Finding(
            "jetpack",
            "PROBLEM",
            f"{words}: this module is out of scope, {module.too_old}",
            "take an Orin or a Thor; here ONNX Runtime alone can run variants, on the CPU",
            facts,
        )
    if release.too_old:
        return Finding(
            "jetpack",
            "PROBLEM",
            f"{words} is older than JetPack 6.1, the oldest whose TensorRT is enough",
            "flash JetPack 6.1 or later",
            facts,
        )
    if module.why_no_target:
        return Finding("jetpack", "note", f"{words}; no table to look it up in, see machine", facts=facts)
    row = release.row(module.target.jetpacks) if module.target else None
    if row is None:
        return Finding(
            "jetpack",
            "note",
            f"{words}: not in the table for this module; what it brings is not known",
            facts=facts,
        )
    facts |= {"row": row.version, "tensorrt": row.tensorrt, "cuda": row.cuda, "python": row.python}
    about = f"JetPack {row.version}" + ("" if release.is_exactly(row) else " or a patch of it")
    brings = f"{about} brings TensorRT {row.tensorrt}, CUDA {row.cuda}, Python {row.python}"
    return Finding("jetpack", "ok", f"{words}; {brings}", facts=facts)


def probe_cuda(root: Path, module: Module) -> Finding:
    told = read_text(root / "usr/local/cuda/version.json")
    try:
        toolkit = json.loads(told or "{}")["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        toolkit = None
    loaded = read_text(root / "proc/driver/nvidia/version") or ""
    driver = re.search(r"Kernel Module(?: for \w+)?\s+([\d.]+)", loaded)
    places = ("usr/local/cuda*/lib64", "usr/local/cuda*/targets/*/lib", "usr/lib/*-linux-gnu")
    runtime = [path.name for place in places for path in folders(root, f"{place}/libcudart.so*")]
    facts = {
        "toolkit": toolkit,
        "driver": driver[1] if driver else None,
        "libcudart": runtime[-1] if runtime else None,
    }
    words = ", ".join(
        value if name == "libcudart" else f"{name} {value}" for name, value in facts.items() if value
    )
    if not module.has_gpu:
        return Finding(
            "cuda", "ok", f"not needed: no NVIDIA GPU{f' ({words})' if words else ''}", facts=facts
        )
    if not words:
        if module.too_old:
            return Finding("cuda", "note", "no toolkit and no libcudart found", None, facts)
        remedy = "sudo apt install nvidia-jetpack" if module.soc else "pip install cuda-python"
        return Finding("cuda", "note", "no toolkit and no libcudart found", remedy, facts)
    return Finding("cuda", "ok", words, facts=facts)


def probe_tensorrt(root: Path, module: Module, release: Release, python: Interpreter) -> Finding:
    """Its `facts["usable"]` says whether the backend is there."""
    name = next((name for name in TENSORRT if name in python.libraries), None)
    found = python.libraries[name] if name else None
    facts: dict[str, object] = {"version": found.version if found else None, "usable": False}
    if not module.has_gpu:
        words = "not needed: no NVIDIA GPU" + (f" ({name} {found.version} is installed)" if found else "")
        return Finding("tensorrt", "ok", words, facts=facts | {"why": "no NVIDIA GPU here"})
    if module.too_old or release.too_old:
        why = module.too_old or f"Jetson Linux {release.linux} is older than JetPack 6.1"
        return Finding("tensorrt", "note", f"not usable here: {why}", None, facts)
    if found is None:
        return _absent(root, module, python, facts)
    if found.error:
        return Finding(
            "tensorrt",
            "PROBLEM",
            f"{name} is installed and cannot be loaded: {found.error}",
            "install the TensorRT libraries of the same version",
            facts,
        )
    rtx, version = name != "tensorrt", found.version or "0"
    if not rtx and int(version.partition(".")[0]) < OLDEST_TENSORRT:
        return Finding(
            "tensorrt",
            "PROBLEM",
            f"{version} is older than {OLDEST_TENSORRT}.0, the least",
            "flash JetPack 6.1 or later" if module.soc else "pip install --upgrade tensorrt",
            facts,
        )
    if "fault" in found.told:
        return Finding(
            "tensorrt",
            "PROBLEM",
            f"{version} cannot start here: {found.told['fault']}",
            "load the driver; give a container the GPU (--runtime nvidia, or --gpus all)",
            facts,
        )
    facts["usable"] = True
    row = release.row(module.target.jetpacks) if module.target else None
    words = f"{'RTX ' if rtx else ''}{version}"
    if module.target:
        words += f"; this GPU computes in {', '.join(module.target.ops_per_clock_per_sm)}"
    if row and not version.startswith(row.tensorrt):
        return Finding(
            "tensorrt",
            "note",
            f"{words}; JetPack {row.version} is listed with {row.tensorrt}",
            facts=facts,
        )
    return Finding("tensorrt", "ok", words, facts=facts)


def _absent(root: Path, module: Module, python: Interpreter, facts: dict[str, object]) -> Finding:
    """The usual cause: JetPack's TensorRT is there, for another Python or outside of this environment."""
    places = [path.parents[1].name for path in folders(root, "usr/lib/python3.*/dist-packages/tensorrt")]
    others = [place.removeprefix("python") for place in places]
    if python.short in others:
        words = "installed for the system's Python, which this environment does not see"
        return Finding(
            "tensorrt", "PROBLEM", words, _VENV if python.environment else "run /usr/bin/python3", facts
        )
    if others:
        words = f"installed for the system's Python {others[0]}, and this is {python.version}"
        remedy = f"run with /usr/bin/python3, or python{others[0]} -m venv --system-site-packages NAME"
        return Finding("tensorrt", "PROBLEM", words, remedy, facts)
    if module.soc:
        library = package_version(root, "libnvinfer10") or package_version(root, "libnvinfer11")
        words = f"no Python module (libnvinfer {library} is there)" if library else "not installed"
        remedy = "sudo apt install python3-libnvinfer" if library else "sudo apt install nvidia-jetpack"
        return Finding("tensorrt", "PROBLEM", words, remedy, facts)
    return Finding("tensorrt", "note", "not installed; the card stays idle", "pip install tensorrt", facts)


def probe_onnxruntime(python: Interpreter) -> Finding:
    found = python.libraries.get("onnxruntime")
    if found and found.error is None:
        providers = [str(p).removesuffix("ExecutionProvider") for p in found.told.get("providers", ())]
        words = f"{found.version} ({', '.join(providers)}); the CPU's is used"
        return Finding("onnxruntime", "ok", words, facts=_library(found) | {"providers": providers})
    words = f"installed and cannot be loaded: {found.error}" if found else "not installed"
    return Finding("onnxruntime", "note", words, "pip install onnxruntime", _library(found))


def probe_openvino(python: Interpreter) -> Finding:
    found = python.libraries.get("openvino")
    if found and found.error is None:
        devices = [str(device) for device in found.told.get("devices", ())]
        version = (found.version or "").partition("-")[0]
        words = f"{version} ({', '.join(devices)}); the CPU is used"
        return Finding("openvino", "ok", words, facts=_library(found) | {"devices": devices})
    if found:
        words = f"installed and cannot be loaded: {found.error}"
        return Finding("openvino", "note", words, "pip install --upgrade openvino", _library(found))
    return Finding(
        "openvino",
        "ok",
        "not installed, and not needed (pip install openvino)",
        facts=_library(None) | {"why": "not installed"},
    )


def probe_python(python: Interpreter) -> Iterator[Finding]:
    number = tuple(int(part) for part in python.short.split("."))
    where = f"{python.version} ({'environment' if python.environment else 'system'}, {python.executable})"
    facts = {"version": python.version, "executable": python.executable, "environment": python.environment}
    if number < _OLDEST_PYTHON:
        yield Finding(
            "python", "PROBLEM", f"{where} is older than 3.10", "install Python 3.10 to 3.12", facts
        )
    elif number > _NEWEST_PYTHON:
        yield Finding("python", "note", f"{where}: not tried with a Python after 3.12", None, facts)
    else:
        yield Finding("python", "ok", where, facts=facts)
    numpy = python.libraries.get("numpy")
    if numpy and numpy.error is None:
        yield Finding("numpy", "ok", str(numpy.version), facts=_library(numpy))
    else:
        words = f"cannot be loaded: {numpy.error}" if numpy else "not installed"
        yield Finding("numpy", "PROBLEM", words, "pip install numpy", _library(numpy))
    readers = {"pillow": python.libraries.get("PIL"), "opencv": python.libraries.get("cv2")}
    there = [f"{name} {found.version}" for name, found in readers.items() if found and found.error is None]
    images = {name: found.version if found else None for name, found in readers.items()}
    if there:
        yield Finding("images", "ok", ", ".join(there), facts=images)
    else:
        yield Finding("images", "PROBLEM", "nothing to read images with", "pip install pillow", images)


def _library(found: Library | None) -> dict[str, object]:
    return {"version": found.version if found else None, "usable": found is not None and found.error is None}
