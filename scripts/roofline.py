"""`python -m scripts.roofline`: this machine's ceilings, measured: products by shape, passes over memory.

On the CPU in ONNX Runtime, each figure the best of rounds that take turns; `--json FILE` is what
`python -m deploy estimate --target cpu --ceilings FILE` reads. Where torch sees a GPU, a tiled product in
Triton stands against cuBLAS too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from deploy.backends import cpu_threads
from deploy.cpu_model import CpuCeilings, PassCeiling, ProductCeiling
from deploy.errors import LabError
from deploy.machine import describe_machine
from deploy.measure import measure_latency, percentile
from deploy.ort import session_options
from deploy.progress import progress
from deploy.table import aligned

SIDES = (112, 56, 28, 14, 7)
WIDTHS = (16, 64, 192, 512, 1280)
KERNELS = (1, 3)
DEPTHWISE = ((112, 32), (56, 128), (28, 256), (14, 512), (7, 1024))
STEMS = ((112, 64, 7), (112, 32, 3))
"""Side and channels of the output, side of the kernel, of convolutions that take a picture of 3 channels and
halve it."""
MOST_MACS, LEAST_MACS = 4e8, 5e5
MOST_VALUES = 5 * 2**18
"""Of a picture: beyond these a shape is in no network of small images, or all overhead."""
ROW = 4
"""Convolutions in a row, to and fro between two widths: ONNX Runtime lays a picture out anew before the first
and after the last, which inside a network it need not."""
PASS_BYTES = tuple(2**power for power in range(14, 29, 2))
CHAIN = 64
"""Layers with nothing to do, in a row."""
Call = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.roofline", description=__doc__)
    parser.add_argument("--threads", type=int, help="of the CPU (default: all usable cores)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each figure, a round (default: 0.03)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the CPU's ceilings")
    options = parser.parse_args()
    try:
        ceilings = measure_cpu(options.threads, options.rounds, options.seconds)
        if options.json:
            ceilings.write(options.json)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_cpu(ceilings))
    if torch.cuda.is_available():
        from scripts.roofline_gpu import report

        print(report())
    return 0


def measure_cpu(threads: int | None, rounds: int, seconds: float) -> CpuCeilings:
    """Raises LabError for more threads than cores and for a time or a number of rounds that is none."""
    if rounds < 1 or not 0 < seconds <= 60:
        raise LabError(f"rounds {rounds}, seconds {seconds}: at least 1, and more than 0 up to 60")
    import onnxruntime

    used = cpu_threads(threads)
    opened = partial(_call, onnxruntime, used)
    shapes = list(product_shapes())
    products = [opened(convolutions(precision, *shape)) for precision in ("fp32", "int8") for shape in shapes]
    passes = [opened(one_pass(size)) for size in PASS_BYTES]
    chain = opened(empty_chain())
    best = _best([*products, *passes, chain], rounds, seconds)
    found = iter(best)
    return CpuCeilings(
        cpu=str(describe_machine()["cpu"]),
        threads=used,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        layer_us=best[-1] * 1e6 / CHAIN,
        products=tuple(
            one
            for precision in ("fp32", "int8")
            for shape in shapes
            for one in _ceilings(precision, shape, next(found))
        ),
        passes=tuple(PassCeiling(size, size / next(found) / 1e9) for size in PASS_BYTES),
    )


Shape = tuple[int, int, int, int, bool]
"""Side of the picture, input and output channels, side of the kernel, depthwise."""


def product_shapes() -> Iterable[Shape]:
    for side, inputs, outputs, kernel in itertools.product(SIDES, WIDTHS, WIDTHS, KERNELS):
        macs = side**2 * inputs * outputs * kernel**2
        fits = side**2 * outputs <= MOST_VALUES and LEAST_MACS <= macs <= MOST_MACS
        if fits and (inputs == outputs or (kernel == 1 and inputs < outputs)):
            yield side, inputs, outputs, kernel, False
    for side, channels in DEPTHWISE:
        yield side, channels, channels, 3, True
    for side, channels, kernel in STEMS:
        yield side, 3, channels, kernel, False


def _ceilings(precision: str, shape: Shape, seconds: float) -> list[ProductCeiling]:
    """Of the two ways between the widths, which share a rate."""
    side, inputs, outputs, kernel, depthwise = shape
    if depthwise:
        gops = 2 * ROW * side**2 * outputs * kernel**2 / seconds / 1e9
        return [ProductCeiling(precision, side**2, 1, kernel**2, True, gops)]
    count = 1 if inputs == 3 else ROW
    gops = 2 * count * side**2 * inputs * outputs * kernel**2 / seconds / 1e9
    if inputs == 3:
        return [ProductCeiling(precision, side**2, outputs, inputs * kernel**2, False, gops)]
    return [
        ProductCeiling(precision, side**2, made, given * kernel**2, False, gops)
        for given, made in dict.fromkeys([(inputs, outputs), (outputs, inputs)])
    ]


def convolutions(
    precision: str, side: int, inputs: int, outputs: int, kernel: int, depthwise: bool
) -> onnx.ModelProto:
    """Some in a row, each with bias and ReLU; in int8 as a bundle's file for ONNX Runtime has them (U8)."""
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {"s": np.float32(0.02), "z": np.uint8(0)} if precision == "int8" else {}
    nodes = []
    stem = inputs == 3
    count = 1 if stem else ROW
    names = ["x", *(f"t{i}" for i in range(1, count)), "y"]
    for i in range(count):
        given, made = (inputs, outputs) if i % 2 == 0 else (outputs, inputs)
        shape = (made, 1 if depthwise else given, kernel, kernel)
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        attributes: dict[str, Any] = {"pads": [kernel // 2] * 4, "group": given if depthwise else 1}
        attributes["strides"] = [2, 2] if stem else [1, 1]
        if precision == "fp32":
            constants |= {f"w{i}": weight.astype(np.float32) / 1e4, f"b{i}": np.ones(made, np.float32)}
            nodes += [
                helper.make_node("Conv", [names[i], f"w{i}", f"b{i}"], [f"c{i}"], **attributes),
                helper.make_node("Relu", [f"c{i}"], [names[i + 1]]),
            ]
        else:
            constants |= {
                f"w{i}": weight, f"ws{i}": np.full(made, 0.01, np.float32),
                f"wz{i}": np.zeros(made, np.int8), f"b{i}": np.ones(made, np.int32),
            }  # fmt: skip
            feed = [names[i], "s", "z", f"w{i}", f"ws{i}", f"wz{i}", "s", "z", f"b{i}"]
            nodes.append(helper.make_node("QLinearConv", feed, [names[i + 1]], **attributes))
    kind = TensorProto.FLOAT if precision == "fp32" else TensorProto.UINT8
    picture = [1, inputs, side, side]
    if stem:
        return _model(nodes, kind, [1, 3, 2 * side, 2 * side], [1, outputs, side, side], constants)
    return _model(nodes, kind, picture, picture, constants)  # the row ends as it began


def one_pass(size: int) -> onnx.ModelProto:
    """Reads size / 2 bytes of float32 and writes as many."""
    shape = [size // 8]
    return _model([helper.make_node("Relu", ["x"], ["y"])], TensorProto.FLOAT, shape, shape, {})


def empty_chain() -> onnx.ModelProto:
    names = ["x", *(f"t{i}" for i in range(1, CHAIN)), "y"]
    # Two ops in turns: the same one twice would be folded.
    nodes = [
        helper.make_node("Sigmoid" if i % 2 else "Tanh", [names[i]], [names[i + 1]]) for i in range(CHAIN)
    ]
    return _model(nodes, TensorProto.FLOAT, [1], [1], {})


def _model(
    nodes: Sequence[onnx.NodeProto],
    kind: int,
    given: Sequence[int],
    made: Sequence[int],
    constants: dict[str, Any],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "ceiling",
        [helper.make_tensor_value_info("x", kind, given)],
        [helper.make_tensor_value_info("y", kind, made)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _call(onnxruntime: Any, threads: int, model: onnx.ModelProto) -> Call:
    options = session_options(onnxruntime, threads, emulate=False)
    # Hundreds of sessions are open, and the threads of one would wait busily while the next is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()[0]
    kind = np.uint8 if given.type == "tensor(uint8)" else np.float32
    x, y = np.ones(given.shape, kind), np.empty(session.get_outputs()[0].shape, kind)
    bound = session.io_binding()
    # Both in place: ONNX Runtime would make a new output each time, whose pages the system clears first.
    bound.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    bound.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return partial(session.run_with_iobinding, bound)


def _best(calls: Sequence[Call], rounds: int, seconds: float) -> list[float]:
    """Seconds: the least p50 over the rounds, in which all take turns."""
    best = [float("inf")] * len(calls)
    with progress("ceilings", rounds * len(calls)) as advance:
        for _ in range(rounds):
            for number, call in enumerate(calls):
                samples = measure_latency(call, warmup_s=seconds / 4, min_duration_s=seconds, min_count=3)
                best[number] = min(best[number], percentile(samples, 50) / 1e3)
                advance(1)
    return best


def format_cpu(ceilings: CpuCeilings) -> str:
    """The ceilings, int8 over fp32, and each rate as a share of the highest of its precision."""
    head = [
        "pixels",
        "in x kernel",
        "out",
        "fp32 GFLOP/s",
        "of the best",
        "int8 GOP/s",
        "of the best",
        "int8/fp32",
    ]
    of = {p: [one for one in ceilings.products if one.precision == p] for p in ("fp32", "int8")}
    most = {p: max(one.gops for one in found) for p, found in of.items()}
    cells = [head] + [
        [
            str(a.rows),
            f"{a.depth} depthwise" if a.depthwise else str(a.depth),
            str(a.columns),
            f"{a.gops:.1f}",
            f"{a.gops / most['fp32']:.0%}",
            f"{b.gops:.1f}",
            f"{b.gops / most['int8']:.0%}",
            f"{b.gops / a.gops:.2f}",
        ]
        for a, b in zip(of["fp32"], of["int8"], strict=True)
    ]
    widest = max(one.gb_per_s for one in ceilings.passes)
    passes = [["bytes read and written", "GB/s", "of the best"]] + [
        [f"{one.bytes:,}", f"{one.gb_per_s:.1f}", f"{one.gb_per_s / widest:.0%}"] for one in ceilings.passes
    ]
    return "\n".join(
        [
            f"{ceilings.cpu}, {ceilings.threads} threads, {ceilings.runtime}",
            f"a layer with nothing to do: {ceilings.layer_us:.1f} us",
            "",
            *aligned(cells, ">" * len(head)),
            "",
            *aligned(passes, ">>>"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
