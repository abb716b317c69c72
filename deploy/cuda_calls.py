"""CUDA's runtime library, called by the names of its functions: through cuda-python, or through ctypes.

cuda-python brings the library with it; a Jetson has libcudart from JetPack and often no cuda-python.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any, Protocol

from deploy.errors import LabError

# P a pointer or handle, z size_t, i int, u unsigned int, U unsigned long long; * what the function fills in.
_SIGNATURES = {
    "cudaGetDeviceCount": "*i",
    "cudaDeviceGetAttribute": "*i i i",
    "cudaMemGetInfo": "*z *z",
    "cudaGetLastError": "",
    "cudaStreamCreateWithFlags": "*P u",
    "cudaStreamSynchronize": "P",
    "cudaStreamDestroy": "P",
    "cudaMalloc": "*P z",
    "cudaFree": "P",
    "cudaHostAlloc": "*P z u",
    "cudaHostGetDevicePointer": "*P P u",
    "cudaFreeHost": "P",
    "cudaMemcpyAsync": "P P z i P",
    "cudaStreamBeginCapture": "P i",
    "cudaStreamEndCapture": "P *P",
    "cudaGraphInstantiate": "*P P U",
    "cudaGraphLaunch": "P P",
    "cudaGraphExecDestroy": "P",
    "cudaGraphDestroy": "P",
}
_TYPES: dict[str, Any] = {
    "P": ctypes.c_void_p,
    "z": ctypes.c_size_t,
    "i": ctypes.c_int,
    "u": ctypes.c_uint,
    "U": ctypes.c_ulonglong,
}
# Arguments that cuda-python wants as a value of an enumeration: position and the enumeration's name.
_ENUMERATIONS = {
    "cudaDeviceGetAttribute": (0, "cudaDeviceAttr"),
    "cudaMemcpyAsync": (3, "cudaMemcpyKind"),
    "cudaStreamBeginCapture": (1, "cudaStreamCaptureMode"),
}
_SONAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so")
_PROPERTIES_BYTES = 8192  # the structure is about 1 KiB, of another size in each version; the name is first


class Calls(Protocol):
    """Every function of the library that is used, by name, with integers for pointers and handles."""

    def call(self, function: str, *arguments: int) -> tuple[int, tuple[int, ...]]:
        """The error code, and what the function filled in, in its order."""
        ...

    def device_name(self, index: int) -> tuple[int, str]:
        """The error code and the name in cudaDeviceProp."""
        ...

    def describe(self, code: int) -> tuple[str, str]:
        """CUDA's name of an error code (cudaErrorNoDevice) and its words for it."""
        ...


def find_calls() -> Calls:
    """cuda-python where it is installed, else libcudart. Raises LabError where there is neither."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # the second until cuda-python 12.5
        try:
            return CudaPython(importlib.import_module(name))
        except ImportError:
            continue
    return Cudart(_load())


class CudaPython:
    """The module of cuda-python."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def call(self, function: str, *arguments: int) -> tuple[int, tuple[int, ...]]:
        given: list[Any] = list(arguments)
        if function in _ENUMERATIONS:
            position, kind = _ENUMERATIONS[function]
            given[position] = getattr(self._module, kind)(given[position])
        code, *filled = getattr(self._module, function)(*given)
        return int(code), tuple(0 if value is None else int(value) for value in filled)

    def device_name(self, index: int) -> tuple[int, str]:
        code, properties = self._module.cudaGetDeviceProperties(index)
        return int(code), "" if int(code) else _text(properties.name)

    def describe(self, code: int) -> tuple[str, str]:
        try:
            error = self._module.cudaError_t(code)
        except ValueError:  # of a later CUDA than this cuda-python
            return f"cudaError {code}", "unknown to this cuda-python"
        name, words = self._module.cudaGetErrorName(error)[1], self._module.cudaGetErrorString(error)[1]
        return _text(name), _text(words)


class Cudart:
    """libcudart through ctypes."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for function in ("cudaGetErrorName", "cudaGetErrorString"):
            getattr(library, function).restype = ctypes.c_char_p

    def call(self, function: str, *arguments: int) -> tuple[int, tuple[int, ...]]:
        given, filled, rest = [], [], list(arguments)
        for letter in _SIGNATURES[function].split():
            if letter.startswith("*"):
                filled.append(_TYPES[letter[1]]())
                given.append(ctypes.byref(filled[-1]))
            else:
                given.append(_TYPES[letter](rest.pop(0)))
        code = int(getattr(self._library, function)(*given))
        return code, tuple(int(value.value or 0) for value in filled)

    def device_name(self, index: int) -> tuple[int, str]:
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        code = int(self._library.cudaGetDeviceProperties(properties, ctypes.c_int(index)))
        return code, _text(properties.value[:256])

    def describe(self, code: int) -> tuple[str, str]:
        name, words = self._library.cudaGetErrorName(code), self._library.cudaGetErrorString(code)
        return _text(name), _text(words)


def _load() -> ctypes.CDLL:
    wheels = sorted(
        str(file) for place in sys.path for file in Path(place).glob("nvidia/c*/lib/libcudart.so.*")
    )
    for name in (find_library("cudart"), *_SONAMES, *wheels):
        if name is None:
            continue
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise LabError(
        "CUDA's runtime library is not there: neither cuda-python nor libcudart.so. On a Jetson: sudo apt "
        "install nvidia-jetpack; on a workstation: pip install cuda-python"
    )


def _text(value: Any) -> str:
    return value.rstrip(b"\0").decode(errors="replace") if isinstance(value, bytes) else str(value)
