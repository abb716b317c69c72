"""The list of backends, and the opening of a variant with one of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from deploy.errors import LabError
from deploy.machine import usable_cores
from deploy.manifest import Bundle, Variant
from deploy.runner import Runner
from deploy.target import DLA_BACKEND


def open_runner(
    bundle: Bundle,
    variant: str,
    backend: str = "onnxruntime",
    *,
    threads: int | None = None,
    emulate: bool = False,
    in_flight: int = 1,
    in_turn: bool = False,
) -> Runner:
    """Open a variant; use it in a `with`.

    threads: CPU threads for one query, all usable cores when None.
    emulate: compute the graph as it is written, Q/DQ in floating point, so that the result does not depend
        on the CPU's INT8 kernels. For checking, not for timing.
    in_flight: threads that may call `infer` at once; on a CPU they share its threads, and there must be one
        for each.
    in_turn: whether other runners take turns with it query by query: then its threads rest between two
        queries. Else they may wait busily for the next one, which is quicker where nobody else needs a core.

    Raises LabError for an unknown backend or variant, a library that is not installed, a thread count out
    of range, a backend that cannot emulate, and a model that does not take the bundle's input.
    """
    check_backend(backend)
    if emulate and not can_emulate(backend):
        raise LabError(f"backend {backend!r} cannot emulate: verify with onnxruntime")
    used = cpu_threads(threads)
    most = MOST_LANES if backend == "tensorrt" else used
    if not 1 <= in_flight <= most:
        raise LabError(f"{in_flight} queries in flight: must be 1 to {most} here with {backend}")
    return _OPENERS[backend](bundle, variant, used, emulate, in_flight, in_turn)


def usual_in_flight(backend: str, threads: int) -> int:
    """How many queries at once a device is likely to need to be never idle: a CPU one for each thread; a GPU
    two, so that the copies of one run beside the computing of the other."""
    return 2 if backend == "tensorrt" else threads


def cpu_threads(threads: int | None) -> int:
    """All usable cores when None. Raises LabError for more than there are."""
    cores = usable_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise LabError(f"threads {threads}: must be 1 to {cores}, the cores that this process may use")
    return threads or cores


def is_installed(backend: str) -> bool:
    """Without importing it; TensorRT counts where there is a GPU that it has engines for."""
    if backend != "tensorrt":
        return find_spec(backend) is not None
    from deploy.cuda import CudaError, find_cuda
    from deploy.engine import find_target
    from deploy.trt_api import find_tensorrt

    try:
        find_target(find_tensorrt(), find_cuda())
    except (LabError, CudaError):
        return False
    return True


def best_backend() -> str:
    """Of those that are installed here; where none is, the one that is easiest to install."""
    return next((name for name in BEST_FIRST if is_installed(name)), "onnxruntime")


def check_backend(name: str) -> None:
    """Raises LabError for a backend that nobody wrote."""
    if name not in _OPENERS:
        raise LabError(f"backend {name!r} is not known; there are: {', '.join(_OPENERS)}")


def can_emulate(name: str) -> bool:
    """Whether a backend can compute a graph as it is written; TensorRT compiles it and has no such mode."""
    return name != "tensorrt"


def cannot_run(variant: Variant, backend: str) -> str | None:
    """Why a backend is not asked to run a variant, on any machine; None where it is."""
    if variant.precision == "bf16" and backend == "onnxruntime":
        return "ONNX Runtime has no BF16 on a CPU"
    if variant.precision == "int8" and backend == "tensorrt" != variant.backend:
        return f"its integers have the form of {variant.backend}, which TensorRT's parser refuses"
    if variant.backend == DLA_BACKEND and backend != DLA_BACKEND:
        return "its INT8 is in a calibration cache, which only TensorRT on a DLA reads"
    return None


def _onnxruntime(
    bundle: Bundle, variant: str, threads: int, emulate: bool, in_flight: int, in_turn: bool
) -> Runner:
    from deploy.ort import OrtRunner

    return OrtRunner(bundle, variant, threads, emulate, in_flight, in_turn)


def _tensorrt(
    bundle: Bundle, variant: str, threads: int, emulate: bool, in_flight: int, in_turn: bool
) -> Runner:
    from deploy.trt import open_tensorrt

    return open_tensorrt(bundle, variant, in_flight)


def _openvino(
    bundle: Bundle, variant: str, threads: int, emulate: bool, in_flight: int, in_turn: bool
) -> Runner:
    from deploy.ov import OpenVinoRunner

    return OpenVinoRunner(bundle, variant, threads, emulate, in_flight)


# A new backend is one file, one function here and one line below.
_OPENERS: dict[str, Callable[[Bundle, str, int, bool, int, bool], Runner]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "openvino": _openvino,
}
BACKENDS = tuple(_OPENERS)
BEST_FIRST = ("tensorrt", "onnxruntime", "openvino")
# A file that was made for one of these is meant for all of them.
CPU_BACKENDS = frozenset({"onnxruntime", "openvino"})
MOST_LANES = 8  # each holds buffers and contexts of its own in the GPU's memory
