"""A mock of the Python module `tensorrt`, its names recorded from the real ones of 10.3, 10.16 and 11.4.

No TensorRT is here that could build without a GPU (TensorRT-RTX can, and is tested as it is). The mock reads
the ONNX file and runs it with ONNX Runtime when CUDA's mock comes to that point of the stream. It has no name
that the real module of its version has not (tensorrt_api.json says how that was recorded), and whatever
TensorRT 11 removed raises when it is touched, in every version. It proves which calls are made, in which
order and with what. It proves nothing of TensorRT's parser, kernels, memory or numbers.
"""

from __future__ import annotations

import ctypes
import json
import math
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from tests.fake_cuda import FakeCuda
from tests.fake_inspector import layers_json
from tests.tensorrt_record import Strict, StrictMeta, refuse

KINDS = {
    "Conv": "CONVOLUTION", "Gemm": "MATRIX_MULTIPLY", "MatMul": "MATRIX_MULTIPLY",
    "QuantizeLinear": "QUANTIZE", "DequantizeLinear": "DEQUANTIZE", "Flatten": "SHUFFLE",
}  # fmt: skip
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
}


class FakeModule(ModuleType):
    """`tensorrt` as `fake` makes it. Fields that tests set: `parser_errors`, `build_error`, `inspector`."""

    def __getattr__(self, name: str) -> Any:
        refuse(name)
        raise AttributeError(name)


def fake(version: str, cuda: FakeCuda | None = None) -> Any:
    """The module of a version: "10.3.0", "10.16.2" or "11.4.0"."""
    module: Any = FakeModule("tensorrt")
    major = int(version.partition(".")[0])
    module.__version__ = version
    module.cuda = cuda or FakeCuda()
    module.parser_errors, module.build_error, module.inspector = [], "", None
    module.no_memory, module.no_capture, module.timings = False, False, []
    module.configs = []

    class ILogger(Strict):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    class Flags(metaclass=StrictMeta):
        TF32 = 3

    class CreationFlags(metaclass=StrictMeta):
        STRONGLY_TYPED = 1 if major < 11 else 0

    class Builder(Strict):
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Network:
            assert flags == 1 << CreationFlags.STRONGLY_TYPED, "a network without explicit types"
            return Network()

        def create_builder_config(self) -> Config:
            module.configs.append(Config())
            return module.configs[-1]  # type: ignore[no-any-return]

        def create_optimization_profile(self) -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three}))

        def build_serialized_network(self, network: Network, config: Config) -> memoryview | None:
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            going = monitor.step_complete("Building engine", 0)
            monitor.phase_finish("Building engine")
            if module.build_error or not going:
                self.logger.log(1, module.build_error or "Build canceled by user")
                return None
            plan = {"version": version, "device": module.cuda.name, "profiles": config.profiles}
            head = json.dumps(plan).encode()
            return memoryview(head + b"\n" + network.content)

    class Config(Strict):
        def __init__(self) -> None:
            self.profiling_verbosity: Any = None
            self.progress_monitor: Any = None
            self.pools: dict[str, int] = {}
            self.flags = {Flags.TF32}
            self.profiles: dict[str, Any] = {}

        def add_optimization_profile(self, profile: Any) -> int:
            self.profiles = profile.shapes
            return 0

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            self.pools[pool] = size

        def clear_flag(self, flag: int) -> None:
            self.flags.discard(flag)

        def create_timing_cache(self, content: bytes) -> Any:
            return SimpleNamespace(content=content, serialize=lambda: b"timings of " + version.encode())

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            module.timings.append(cache.content)
            return not cache.content or cache.content == b"timings of " + version.encode()

    class Network(Strict):
        def __init__(self) -> None:
            self.content, self.num_outputs = b"", 0
            self.layers: list[Any] = []
            self.inputs: list[Any] = []

        num_layers = property(lambda self: len(self.layers))
        num_inputs = property(lambda self: len(self.inputs))

        def get_layer(self, index: int) -> Any:
            return self.layers[index]

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

    class OnnxParser(Strict):
        def __init__(self, network: Network, logger: ILogger) -> None:
            self.network = network

        num_errors = property(lambda self: len(module.parser_errors))

        def get_error(self, index: int) -> Any:
            node, name, operator, words = module.parser_errors[index]
            return SimpleNamespace(
                node=lambda: node, node_name=lambda: name, node_operator=lambda: operator, desc=lambda: words
            )

        def parse(self, content: bytes) -> bool:
            model = onnx.load_from_string(content)
            self.network.content = content
            self.network.inputs = [_value(v) for v in model.graph.input]
            self.network.num_outputs = len(model.graph.output)
            self.network.layers = [_node(n) for n in model.graph.node]
            return not module.parser_errors

    class Runtime(Strict):
        def __init__(self, logger: ILogger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: Any) -> Engine | None:
            head, _, content = bytes(plan).partition(b"\n")
            about = json.loads(head)
            if about["version"] != version:
                self.logger.log(1, f"The engine plan file was built with {about['version']}")
                return None
            return Engine(content, about["profiles"])

    class Engine(Strict):
        def __init__(self, content: bytes, profiles: dict[str, Any]) -> None:
            graph = onnx.load_from_string(content).graph
            self.content, self.profiles = content, profiles
            self.tensors = {v.name: (_value(v), "INPUT") for v in graph.input}
            self.tensors |= {v.name: (_value(v), "OUTPUT") for v in graph.output}

        num_io_tensors = property(lambda self: len(self.tensors))

        def get_tensor_name(self, index: int) -> str:
            names: list[str] = list(self.tensors)
            return names[index]

        def get_tensor_mode(self, name: str) -> Any:
            return SimpleNamespace(name=self.tensors[name][1])

        def get_tensor_dtype(self, name: str) -> Any:
            return SimpleNamespace(name=self.tensors[name][0].kind)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape: tuple[int, ...] = self.tensors[name][0].shape
            return shape

        def create_execution_context(self) -> Context | None:
            return None if module.no_memory else Context(self)

        def create_engine_inspector(self) -> Any:
            inspector: Any = SimpleNamespace(execution_context=None)

            def information(form: str) -> str:
                assert form == "JSON"
                assert inspector.execution_context.shapes, "without shapes it says N/A due to dynamic shapes"
                return str(module.inspector or layers_json(major, []))

            inspector.get_engine_information = information
            return inspector

    class Context(Strict):
        def __init__(self, engine: Engine) -> None:
            self.engine, self.shapes, self.addresses = engine, dict[str, tuple[int, ...]](), dict[str, int]()
            self.session = onnxruntime.InferenceSession(engine.content, providers=["CPUExecutionProvider"])

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            if name in self.engine.profiles:
                least, _, most = self.engine.profiles[name]
                assert least[0] <= shape[0] <= most[0]
            self.shapes[name] = shape
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            batch = next(iter(self.shapes.values()))[0]
            return tuple(batch if side == -1 else side for side in self.engine.get_tensor_shape(name))

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self.addresses[name] = memory
            return True

        def execute_async_v3(self, stream: int) -> bool:
            if module.no_capture and module.cuda.capturing is not None:
                module.cuda.invalid_capture = True
                return False
            shapes = {name: self.get_tensor_shape(name) for name in self.engine.tensors}
            module.cuda.queue(stream, lambda: self._compute(shapes))
            return True

        def _compute(self, shapes: dict[str, tuple[int, ...]]) -> None:
            arrays = {}
            for name, shape in shapes.items():
                dtype = np.dtype({"FLOAT": "f4", "HALF": "f2"}[self.engine.tensors[name][0].kind])
                size = math.prod(shape) * dtype.itemsize
                memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
                arrays[name] = np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
            names = [n for n, (_, mode) in self.engine.tensors.items() if mode == "OUTPUT"]
            feed = {n: a for n, a in arrays.items() if n not in names}
            for name, result in zip(names, self.session.run(names, feed), strict=True):
                arrays[name][...] = result

    for kind in (ILogger, IProgressMonitor, Builder, OnnxParser, Runtime):
        setattr(module, kind.__name__, kind)
    module.recorded = {
        "Builder": Builder, "IBuilderConfig": Config, "INetworkDefinition": Network, "OnnxParser": OnnxParser,
        "Runtime": Runtime, "ICudaEngine": Engine, "IExecutionContext": Context, "BuilderFlag": Flags,
        "NetworkDefinitionCreationFlag": CreationFlags, "ILogger": ILogger,
    }  # fmt: skip
    module.BuilderFlag, module.NetworkDefinitionCreationFlag = Flags, CreationFlags
    module.ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
    module.MemoryPoolType = SimpleNamespace(WORKSPACE="WORKSPACE")
    module.LayerInformationFormat = SimpleNamespace(JSON="JSON")
    return module


def _value(value: onnx.ValueInfoProto) -> Any:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return SimpleNamespace(name=value.name, shape=shape, kind=TYPES[kind.elem_type])


def _node(node: onnx.NodeProto) -> Any:
    return SimpleNamespace(
        name=node.name,
        metadata=f"[ONNX Layer: {node.name}]",
        type=SimpleNamespace(name=KINDS.get(node.op_type, node.op_type.upper())),
        num_inputs=len(node.input),
        num_outputs=len(node.output),
        get_input=lambda i: SimpleNamespace(name=node.input[i]),
        get_output=lambda i: SimpleNamespace(name=node.output[i]),
    )
