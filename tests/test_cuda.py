"""CUDA's runtime through cuda-python and through ctypes: the real libraries, which tell what is not here."""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy import cuda_calls
from deploy.cuda import Cuda, CudaError, Device, find_cuda
from deploy.cuda_calls import Calls, CudaPython, Cudart, find_calls
from deploy.errors import LabError
from tests.fake_cuda import ILLEGAL_ADDRESS, FakeCuda

ABSENT = 35  # cudaErrorInsufficientDriver: what every call gives without a driver


def libraries() -> list[Calls]:
    return [CudaPython(importlib.import_module("cuda.bindings.runtime")), Cudart(cuda_calls._load())]


def without_driver() -> list[Calls]:
    found = libraries()
    if found[0].call("cudaGetDeviceCount")[0] != ABSENT:
        pytest.skip("there is a driver; tests/test_gpu_tensorrt.py calls the library for real")
    return found


def test_both_libraries_name_an_error_alike() -> None:
    names = [calls.describe(700) for calls in libraries()]
    assert names == [("cudaErrorIllegalAddress", "an illegal memory access was encountered")] * 2


ARGUMENTS: dict[str, tuple[int, ...]] = {
    "cudaGetDeviceCount": (),
    "cudaDeviceGetAttribute": (75, 0),
    "cudaMemGetInfo": (),
    "cudaStreamCreateWithFlags": (1,),
    "cudaStreamSynchronize": (0,),
    "cudaMalloc": (64,),
    "cudaFree": (64,),
    "cudaHostAlloc": (64, 2),
    "cudaHostGetDevicePointer": (64, 0),
    "cudaMemcpyAsync": (64, 64, 4, 1, 0),
    "cudaStreamBeginCapture": (0, 1),
    "cudaStreamEndCapture": (0,),
    "cudaGraphLaunch": (64, 0),
}


@pytest.mark.parametrize("function", ARGUMENTS)
def test_every_function_is_called_by_both_and_answers_that_no_driver_is_there(function: str) -> None:
    answers = [calls.call(function, *ARGUMENTS[function]) for calls in without_driver()]
    assert [code for code, _ in answers] == [ABSENT, ABSENT]
    assert len(answers[0][1]) == len(answers[1][1])


def test_without_a_driver_the_remedy_is_told() -> None:
    for calls in without_driver():
        with pytest.raises(LabError, match=r"cudaErrorInsufficientDriver .*no NVIDIA driver is loaded"):
            Cuda(calls).device()


class Library:
    """Stands for libcudart: functions that look at their C arguments."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            self.seen.append((name, [getattr(a, "value", None) for a in arguments]))
            for argument in arguments:
                if hasattr(argument, "_obj"):  # byref
                    argument._obj.value = 7
            return 0

        setattr(self, name, function)
        return function


def test_ctypes_passes_pointers_whole_and_results_by_reference() -> None:
    library = Library()
    calls = Cudart(library)
    high = (1 << 47) + 8  # an int, ctypes' default, would cut it
    assert calls.call("cudaMemcpyAsync", high, 16, 1 << 33, 2, high) == (0, ())
    assert library.seen[-1] == ("cudaMemcpyAsync", [high, 16, 1 << 33, 2, high])
    assert calls.call("cudaMemGetInfo") == (0, (7, 7))
    assert calls.call("cudaStreamEndCapture", high) == (0, (7,))
    assert library.seen[-1] == ("cudaStreamEndCapture", [high, None])


C_TYPES = {"void": "P", "size_t": "z", "int": "i", "unsigned int": "u", "unsigned long long": "U"}


def letter(parameter: str) -> str:
    """The letter of `cuda_calls` for a parameter of a C declaration: "size_t *free" is "*z"."""
    text = re.sub(r"__dv\(0\)|\bconst\b", "", parameter).strip()
    words, stars = text.replace("*", " ").split(), text.count("*")
    kind = " ".join(words[:-1])
    if kind.startswith("enum "):
        return "i"
    if kind.startswith("cuda"):  # a handle: itself a pointer
        return "*P" if stars else "P"
    if kind == "void":
        return "*P" if stars == 2 else "P"
    return "*" * stars + C_TYPES[kind]


def test_the_signatures_are_those_of_cudas_own_header() -> None:
    places = (Path(place) / "nvidia/cu13/include/cuda_runtime_api.h" for place in sys.path)
    header = next(file for file in places if file.is_file()).read_text()
    found = {}
    for function in cuda_calls._SIGNATURES:
        declared = re.search(rf"CUDARTAPI {function}\((.*)\);", header)
        assert declared is not None, function
        parameters = [] if declared[1] == "void" else re.split(r",\s*", declared[1])
        found[function] = " ".join(letter(parameter) for parameter in parameters)
    assert found == cuda_calls._SIGNATURES


def test_cuda_python_is_taken_first_and_ctypes_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries()
    assert isinstance(find_calls(), CudaPython)
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    assert isinstance(find_calls(), Cudart)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    with pytest.raises(LabError, match=r"neither cuda-python nor libcudart.so.*nvidia-jetpack"):
        find_cuda()


def test_a_device_is_described() -> None:
    found = Cuda(FakeCuda(name="Orin", capability=(8, 7), integrated=True)).device()
    assert found == Device("Orin", "8.7", True)
    assert str(found) == "Orin (compute capability 8.7)"
    with pytest.raises(LabError, match="shows no NVIDIA GPU: run on the device"):
        Cuda(FakeCuda(num_devices=0)).device()


def test_what_the_user_can_mend_is_told_apart_from_the_rest() -> None:
    with pytest.raises(
        LabError, match=r"cudaErrorMemoryAllocation in cudaMalloc \(out of memory\): the GPU's"
    ):
        Cuda(FakeCuda(memory=1 << 20)).malloc(1 << 21)
    with pytest.raises(CudaError, match="cudaErrorIllegalAddress in cudaMemGetInfo: an illegal") as told:
        Cuda(FakeCuda(fails={"cudaMemGetInfo": ILLEGAL_ADDRESS})).free_bytes()
    assert told.value.name == "cudaErrorIllegalAddress"
