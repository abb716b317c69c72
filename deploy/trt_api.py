"""TensorRT as it is found on a machine: 10 (JetPack 6 and 7), 11, or TensorRT-RTX, behind one class.

Only what all of them have is touched. TensorRT 11 took out calibrators, precision flags and whatever else
served networks without explicit types; a network of ours says its types itself, by Q/DQ and by its tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from deploy.build_phases import Phases
from deploy.errors import LabError
from deploy.trt_types import Builder, Config, Context, Engine, Named, Network, Parser, Runtime, TimingCache

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Modules in the order they are tried; the last is there where TensorRT-RTX is installed by its parts."""
OLDEST = 10
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class Log:
    """What TensorRT said: its errors since it was last asked, and where `verbose` everything."""

    def __init__(self, module: ModuleType, verbose: bool) -> None:
        kept: list[str] = []
        everything: list[str] = []
        limit = int(module.ILogger.ERROR)

        class Logger(module.ILogger):  # type: ignore[misc, name-defined]  # its base is known at run time only
            def log(self, severity: Any, message: str) -> None:
                if verbose:
                    everything.append(message)
                if int(severity) <= limit:
                    kept.append(message)

        self.logger = Logger()
        self.everything = everything
        self._kept = kept

    def take(self) -> str:
        """The messages since the last call, one a line; empty where there were none."""
        text = "\n".join(dict.fromkeys(self._kept))
        self._kept.clear()
        return text


@dataclass(frozen=True)
class TensorRT:
    """One TensorRT library. `version` is as the module says it: an engine runs with no other one."""

    module: Any
    verbose: bool = False
    """Whether the log keeps everything, hundreds of kilobytes a build."""

    @property
    def rtx(self) -> bool:
        """Whether this is TensorRT-RTX, which compiles on the device and builds for GPUs elsewhere."""
        return "rtx" in str(self.module.__name__)

    @property
    def flavour(self) -> str:
        return "TensorRT-RTX" if self.rtx else "TensorRT"

    @property
    def version(self) -> str:
        return str(self.module.__version__)

    def __str__(self) -> str:
        return f"{self.flavour} {self.version}"

    @cached_property
    def log(self) -> Log:
        return Log(self.module, self.verbose)

    @cached_property
    def runtime(self) -> Runtime:
        """Raises LabError where TensorRT makes none, as without a driver."""
        runtime: Runtime = self._start(self.module.Runtime)
        return runtime

    def builder(self) -> Builder:
        """Raises LabError where TensorRT makes none, as without a driver."""
        builder: Builder = self._start(self.module.Builder)
        return builder

    def _start(self, kind: Any) -> Any:
        try:
            return kind(self.log.logger)
        except (TypeError, RuntimeError) as error:  # TypeError: pybind11's word for a null from the library
            raise LabError(f"{self} cannot start here: {_first(self.log.take() or str(error))}") from error

    def network(self, builder: Builder) -> Network:
        """An empty network whose types are those of its tensors."""
        # 11 takes every network for one, and may drop the flag.
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def parser(self, network: Network) -> Parser:
        parser: Parser = self.module.OnnxParser(network, self.log.logger)
        return parser

    def config(self, builder: Builder) -> Config:
        """With the profiling verbosity that lets the types of an engine's layers be read back."""
        config = builder.create_builder_config()
        config.profiling_verbosity = self.module.ProfilingVerbosity.DETAILED
        return config

    def limit_workspace(self, config: Config, num_bytes: int) -> None:
        config.set_memory_pool_limit(self.module.MemoryPoolType.WORKSPACE, num_bytes)

    def without_tf32(self, config: Config) -> None:
        config.clear_flag(self.module.BuilderFlag.TF32)

    def check_capabilities(self, names: Sequence[str]) -> None:
        """Raises LabError unless engines can be built for all of these compute capabilities ("8.6")."""
        if not self.rtx:
            raise LabError(
                f"compute capability {', '.join(names)}: {self} builds for this machine's own GPU only; "
                "build on the device, or with TensorRT-RTX"
            )
        if len(set(names)) != len(names):
            raise LabError(f"compute capability {', '.join(names)}: name each once")
        if unknown := sorted(set(names) - set(self._capabilities)):
            raise LabError(
                f"compute capability {', '.join(unknown)}: {self} builds for "
                f"{', '.join(sorted(self._capabilities, key=float))}"
            )

    def capabilities_for(self, own: str) -> tuple[str, ...]:
        """What to build for on a GPU of compute capability `own`; none named: whatever TensorRT takes itself.

        What TensorRT-RTX takes itself leaves out 7.5 and reaches beyond the newest that it has a name for.
        Raises LabError for a GPU that it has no engines for: those of an older one do not run there either.
        """
        if not self.rtx:
            return ()
        known = sorted(self._capabilities, key=float)
        if own in known:
            return (own,)
        if float(own) > float(known[-1]):
            return ()
        raise LabError(
            f"compute capability {own}: {self} has no engines for it, only for {', '.join(known)} and later: "
            "install TensorRT (pip install tensorrt), or run the int8-cpu variant with ONNX Runtime"
        )

    def aim_at(self, config: Any, names: Sequence[str]) -> None:
        """Build for GPUs of these compute capabilities, here or not; TensorRT-RTX alone has this."""
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(self._capabilities[name], index)

    @property
    def _capabilities(self) -> dict[str, Any]:
        known = self.module.ComputeCapability
        return {f"{n[2:-1]}.{n[-1]}": getattr(known, n) for n in dir(known) if n.startswith("SM")}

    def timing_cache(self, config: Config, content: bytes) -> TimingCache | None:
        """Give the builder what earlier builds measured; None where this TensorRT times no kernels.

        Content of another version or device is left aside for an empty cache.
        """
        if self.rtx:  # it compiles on the device instead of timing there, and deprecates these calls
            return None
        for candidate in dict.fromkeys((content, b"")):
            cache = config.create_timing_cache(candidate)
            if cache is not None and config.set_timing_cache(cache, False):
                self.log.take()
                return cache
        return None

    def monitor(self, phases: Phases) -> Any:
        """TensorRT's progress monitor, which tells `phases` and stops the build once they are cancelled."""

        class Monitor(self.module.IProgressMonitor):  # type: ignore[misc, name-defined]  # as Logger above
            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                phases.start(phase_name, parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                phases.step(phase_name, step)
                return not phases.cancelled

            def phase_finish(self, phase_name: str) -> None:
                phases.finish(phase_name)

        return Monitor()

    def open_engine(self, plan: Any, what: str) -> Engine:
        """Deserialise an engine. Raises LabError where it does not fit the library, the GPU or its memory."""
        self.log.take()
        engine = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise LabError(
                f"{what}: {self} cannot open this engine ({_first(self.log.take())}); an engine runs with "
                "the version, on the kind of GPU and the system that it was built with: build it here"
            )
        return engine

    def context(self, engine: Any) -> Context:
        """What runs an engine with one set of shapes. Raises LabError where its memory is not to be had."""
        self.log.take()
        settings = engine.create_runtime_config() if self.rtx else None
        if settings is None:
            context: Context | None = engine.create_execution_context()
        else:
            # Else the kernels for a free batch are compiled beside the first queries, and a CUDA graph would
            # keep the general ones that stand in for them.
            eager = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
            settings.dynamic_shapes_kernel_specialization_strategy = eager
            context = engine.create_execution_context(settings)
        if context is None:
            raise LabError(
                f"{self} has no memory for an execution context ({_first(self.log.take())}); close other "
                "programs that use the GPU, or build for a smaller batch"
            )
        return context

    def engine_information(self, engine: Engine, context: Context) -> str:
        """The inspector's JSON for the context's shapes."""
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context  # else a free batch leaves every layer "N/A"
        return inspector.get_engine_information(self.module.LayerInformationFormat.JSON)

    def dtype(self, kind: Named, tensor: str) -> str:
        """numpy's name of a tensor's type. Raises LabError for one that numpy has not."""
        if kind.name not in _DTYPES:
            raise LabError(
                f"{tensor!r} is {kind.name}, which numpy does not know: export the model with float32 or "
                "float16 inputs and outputs"
            )
        return _DTYPES[kind.name]


def find_tensorrt(names: Sequence[str] = NAMES) -> TensorRT:
    """The TensorRT of this machine. Raises LabError where there is none, or one before 10."""
    module = next((found for name in names if (found := _import(name)) is not None), None)
    if module is None:
        raise LabError(
            "TensorRT is not installed. On a Jetson, JetPack brings it for the system's Python: sudo apt "
            "install python3-libnvinfer, then run with that Python, or in an environment made by "
            "`python3 -m venv --system-site-packages`. On a workstation: pip install tensorrt, or "
            "pip install tensorrt-rtx"
        )
    api = TensorRT(module)
    if not api.rtx and int(api.version.partition(".")[0]) < OLDEST:
        raise LabError(
            f"{api} is too old: {OLDEST}.0 is the least (JetPack 6.1). JetPack 5 cannot run these engines: "
            "flash JetPack 6.1 or later, or run the int8-cpu variant with ONNX Runtime"
        )
    return api


def _import(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        return None
    except Exception as error:  # a library that it needs is not there: its own loaders raise what they like
        raise LabError(
            f"the Python module {name} is there and cannot be loaded ({error}); install the TensorRT "
            "libraries of the same version"
        ) from error
    # A folder of stubs is a namespace without content.
    return module if hasattr(module, "Builder") else None


def _first(text: str) -> str:
    """The first line: the others tell where in TensorRT's own source it was."""
    return text.partition("\n")[0] or "it does not say why"
