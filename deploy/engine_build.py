"""An ONNX file to a TensorRT plan: a strongly typed network, for one batch or a range of them."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from deploy.build_phases import Phases
from deploy.engine_layers import quantised_nodes
from deploy.errors import LabError
from deploy.progress import progress
from deploy.trt_api import TensorRT
from deploy.trt_types import Builder, Config, Network, NetworkTensor, Parser, TimingCache, sides

DEFAULT_BATCH = (1, 1, 32)
_MAX_BATCH = 4096
_NO_NODE = "the file as a whole"
_DEVICE_NOISE = ("cudaError", "CUDA driver")


@dataclass(frozen=True)
class BuildOptions:
    """batch: least, most common and largest, for a network whose batch is free; kernels are chosen for the
    second. None: DEFAULT_BATCH, or the network's own fixed batch.

    workspace_mib: limit of the memory that one kernel may take; None: by the memory that is free.
    tf32: let float32 layers multiply in TF32 where the GPU can, as trtexec does.
    Raises LabError for values out of range.
    """

    batch: tuple[int, int, int] | None = None
    workspace_mib: int | None = None
    tf32: bool = True

    def __post_init__(self) -> None:
        least, common, most = self.batch or DEFAULT_BATCH
        if not 1 <= least <= common <= most <= _MAX_BATCH:
            raise LabError(
                f"batch {least} {common} {most}: least, most common and largest must go up, from 1 to "
                f"{_MAX_BATCH}"
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise LabError(f"workspace {self.workspace_mib} MiB: must be at least 1")


@dataclass(frozen=True)
class Plan:
    """A serialised engine (`data` has the buffer protocol), and what its network was.

    quantised: names of the ONNX nodes that the file asks to run in INT8.
    batch: least, most common, largest. timings: content of the timing cache, None where there is none.
    """

    data: Any
    quantised: tuple[str, ...]
    batch: tuple[int, int, int]
    timings: bytes | None
    seconds: float


def build_plan(
    api: TensorRT,
    content: bytes,
    options: BuildOptions,
    *,
    label: str,
    compute_capabilities: tuple[str, ...],
    workspace_bytes: int | None,
    timings: bytes,
) -> Plan:
    """Parse and build. Ctrl-C stops the build within a step of it.

    content: of an ONNX file. label: of it, for the progress bar and errors.
    compute_capabilities: GPUs to build for; none: this machine's.
    timings: content of a timing cache, may be empty.
    Raises LabError for a file that the parser does not take, with every error that it tells, for a free side
    that is not the batch, and for a build that fails.
    """
    builder = api.builder()
    network = api.network(builder)
    parser = api.parser(network)
    _parse(api, parser, network, content, label)
    config = api.config(builder)
    batch = _set_batch(builder, config, network, options, label)
    if not options.tf32:
        api.without_tf32(config)
    if workspace_bytes is not None:
        api.limit_workspace(config, workspace_bytes)
    if compute_capabilities:
        api.aim_at(config, compute_capabilities)
    cache = api.timing_cache(config, timings)
    quantised = quantised_nodes(network)
    start = time.perf_counter()
    data = _run(api, builder, network, config, label)
    seconds = time.perf_counter() - start
    if data is None:
        raise _failure(api, label, workspace_bytes)
    return Plan(data, quantised, batch, _content(cache), seconds)


def _parse(api: TensorRT, parser: Parser, network: Network, content: bytes, label: str) -> None:
    api.log.take()
    if not parser.parse(content) or parser.num_errors:
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [f"{_where(e.node(), e.node_name(), e.node_operator())}: {_plain(e.desc())}" for e in errors]
        text = "\n  ".join(["", *(lines or [f"{_NO_NODE}: {_plain(api.log.take())}"])])
        raise LabError(
            f"{label}: {api} does not take this network, {max(1, len(errors))} error(s):{text}\n"
            f"{_remedy(text)}"
        )
    if not network.num_layers or not network.num_outputs:
        raise LabError(
            f"{label}: holds no network ({len(content):,} bytes); copy or export the ONNX file again"
        )


def _remedy(errors: str) -> str:
    if _NO_NODE in errors:
        return "Copy or export the ONNX file again: it is cut off, or no ONNX"
    remedies = ["Export the model anew without what is named, or update TensorRT"]
    if "QuantizeLinear" in errors or "DequantizeLinear" in errors:
        remedies.append(
            "an INT8 file must have int8 tensors with zero-point 0 and float biases, as the variants have "
            "that are made for tensorrt"
        )
    if "bf16" in errors.lower() or "bfloat16" in errors.lower():
        remedies.append("of a network in BF16 there is an fp16 variant to be had: precisions=[fp16,int8]")
    return "; ".join(remedies)


def _where(node: int, name: str, operator: str) -> str:
    if node < 0 and not name:
        return _NO_NODE
    return f"node {name or node} ({operator})" if operator else f"node {name or node}"


def _plain(text: str) -> str:
    """TensorRT's words without what it says about a driver that parsing does not need."""
    lines = [line for line in text.splitlines() if line and not any(n in line for n in _DEVICE_NOISE)]
    return " ".join(lines) or "it does not say why"


def _set_batch(
    builder: Builder, config: Config, network: Network, options: BuildOptions, label: str
) -> tuple[int, int, int]:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    if free := [f"{t.name} {sides(t.shape)}" for t in inputs if -1 in sides(t.shape)[1:]]:
        raise LabError(
            f"{label}: {', '.join(free)}: a side other than the batch is free (-1); export it with a fixed "
            "size"
        )
    if not any(-1 in sides(t.shape) for t in inputs):
        return _fixed_batch(inputs, options, label)
    batch = options.batch or DEFAULT_BATCH
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        first, *rest = sides(tensor.shape)
        shapes = [(size, *rest) if first == -1 else (first, *rest) for size in batch]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    return batch


def _fixed_batch(inputs: list[NetworkTensor], options: BuildOptions, label: str) -> tuple[int, int, int]:
    size = sides(inputs[0].shape)[0]
    if options.batch not in (None, (size, size, size)):
        raise LabError(
            f"{label}: was exported for batch {size} only; leave the batch out, or export it with a free one"
        )
    return size, size, size


def _run(api: TensorRT, builder: Builder, network: Network, config: Config, label: str) -> Any:
    """The build in a thread of its own, so that Ctrl-C reaches this one while TensorRT computes."""
    with progress(f"building {label}", 1) as advance, ThreadPoolExecutor(1) as thread:
        phases = Phases(advance)
        config.progress_monitor = api.monitor(phases)
        # Ctrl-C while the thread starts would leave it running, known to nobody.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        future = thread.submit(builder.build_serialized_network, network, config)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            data = future.result()
        except KeyboardInterrupt:
            phases.cancelled = True
            raise
        phases.complete()
        return data


def _failure(api: TensorRT, label: str, workspace_bytes: int | None) -> LabError:
    text = _plain(api.log.take())
    if any(word in text.lower() for word in ("out of memory", "outofmemory", "alloc")):
        limit = "" if workspace_bytes is None else f" with a workspace of {workspace_bytes >> 20} MiB"
        return LabError(
            f"{label}: {api} ran out of memory{limit} ({text}): close other programs (a desktop takes about "
            "1 GiB), give --workspace-mib less, or add swap"
        )
    return LabError(f"{label}: {api} cannot build an engine of this network: {text}")


def _content(cache: TimingCache | None) -> bytes | None:
    return None if cache is None else bytes(cache.serialize())
