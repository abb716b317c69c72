"""`python -m optimize.placement BUNDLE`: whether TensorRT puts INT8 where the file asks for it, with no GPU.

TensorRT-RTX builds each variant on the CPU, for the compute capabilities that it knows. Of the engine only
the table of its layers is read (`optimize/layer_table.py`) and held against the ONNX file
(`optimize/placement_judge.py`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from deploy.bundle import open_bundle
from deploy.errors import LabError
from optimize.files import write_bytes
from optimize.placement_judge import IN_KERNEL, INT8, Judgement, judge_engine
from optimize.rtx_build import COMPUTE_CAPABILITIES, build

BACKEND = "tensorrt"
EVIDENCE = "Evidence, not proof, for a Jetson: TensorRT-RTX knows no Orin (8.7) and chooses its own kernels."
_COLUMNS = ("capability", "convolutions", "products", "skips", "reformats", "padded", "weights", "verdict")


@dataclass(frozen=True)
class Task:
    """A file to check, and what is asked of it."""

    name: str
    file: Path
    int8: bool | None
    """None: where the file quantises any activation."""
    keep_float: Set[str]
    """Layers that are to be in float."""


@dataclass(frozen=True)
class Checked:
    name: str
    int8: bool
    tensorrt_rtx: str
    batch: int
    lint: list[str]
    """What the linter finds in the file, whoever builds it."""
    engines: dict[str, Judgement]
    """By compute capability."""

    @property
    def ok(self) -> bool:
        return not self.lint and all(engine.ok for engine in self.engines.values())


def check(task: Task, compute_capabilities: Sequence[str]) -> Checked:
    """Lint, build and judge one file, about a second for ResNet-50 and capability.

    Raises LabError where that cannot be done: no TensorRT-RTX, a file that it does not take, a log that is
    not understood.
    """
    # Its imports bring torch, for seconds: a mistake in the arguments is told before that.
    from optimize.qdq_lint import lint

    model = _load(task.file)
    int8 = task.int8
    if int8 is None:
        int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    builds = [build(model, task.file, capability) for capability in compute_capabilities]
    return Checked(
        name=task.name,
        int8=int8,
        tensorrt_rtx=builds[0].version,
        batch=builds[0].batch,
        lint=lint(model, task.keep_float) if int8 else [],
        engines={b.compute_capability: judge_engine(model, b.table, int8, task.keep_float) for b in builds},
    )


def summary(checked: Checked) -> str:
    """One line, of the first engine."""
    capability, engine = next(iter(checked.engines.items()))
    findings = [*checked.lint, *engine.findings]
    verdict = f"{len(findings)} findings, the first: {findings[0]}" if findings else "as asked for"
    convs, products, skips = (
        _share(kind, checked.int8) for kind in (engine.convs, engine.products, engine.adds)
    )
    where = " in INT8" if checked.int8 else ""
    return (
        f"{convs} convolutions, {products} products, {skips} skips{where}, {len(engine.reformats)} reformats "
        f"for {capability}: {verdict}"
    )


def report(checked: Checked) -> str:
    """The table of its engines, and every finding once."""
    engines = checked.engines.items()
    rows = [_COLUMNS, *(_row(capability, engine, checked.int8) for capability, engine in engines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [f"{checked.name}: TensorRT-RTX {checked.tensorrt_rtx}, batch {checked.batch}"]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"  {'  '.join(cells)}".rstrip())
    found: dict[str, list[str]] = {text: ["in the file"] for text in checked.lint}
    for capability, engine in engines:
        for text in engine.findings:
            found.setdefault(text, []).append(capability)
    return "\n".join([*lines, *(f"  {', '.join(where)}: {text}" for text, where in found.items())])


def _row(capability: str, engine: Judgement, int8: bool) -> tuple[str, ...]:
    return (
        capability,
        _share(engine.convs, int8),
        _share(engine.products, int8),
        _share(engine.adds, int8),
        str(len(engine.reformats)),
        str(len(engine.padded)),
        f"{engine.weight_bytes / 1e6:.1f} MB",
        "ok" if engine.ok else f"{len(engine.findings)} findings",
    )


def _share(counts: Mapping[str, int], int8: bool) -> str:
    """How many are in INT8 of how many; of a float file, how many in which type."""
    total = sum(counts.values())
    if int8:
        return f"{counts.get(INT8, 0) + counts.get(IN_KERNEL, 0)} of {total}"
    return ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "0"


def _load(file: Path) -> onnx.ModelProto:
    """With a name of its own for every node: the engine's layers are told by them."""
    try:
        model = onnx.load(file)
    # What protobuf, onnx and the system raise has no other base in common.
    except Exception as error:
        raise LabError(f"{file}: is no ONNX file that can be read ({error}); export it again") from error
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}:{node.output[0]}"
        seen.add(node.name)
    return model


def _tasks(options: argparse.Namespace) -> Iterator[Task]:
    path: Path = options.path
    if path.suffix == ".onnx":
        if options.variant:
            raise LabError(f"--variant: {path} is one file; give a bundle, or leave it out")
        yield Task(path.name, path, None, frozenset(options.keep_float))
        return
    if options.keep_float:
        raise LabError("--keep-float: a bundle says itself which layers stay in float; leave it out")
    bundle = open_bundle(path)
    known = [variant.name for variant in bundle.variants if variant.backend == BACKEND]
    unknown = sorted(set(options.variant or ()) - set(known))
    if unknown or not known:
        raise LabError(
            f"bundle {path}: no variant {', '.join(unknown) or 'at all'} for TensorRT; it has "
            f"{', '.join(known) or 'none'}; take one of these, or write a bundle with precisions=[int8]"
        )
    for variant in bundle.variants:
        if variant.name in (options.variant or known):
            kept = frozenset(variant.metrics.get("keep_float", ()))
            yield Task(variant.name, bundle.path(variant.name), variant.precision == "int8", kept)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when something is not where it should be; 2 where that cannot be told, on stderr."""
    options = _parser().parse_args(argv)
    checked, errors = [], []
    try:
        for task in _tasks(options):
            try:
                checked.append(check(task, options.compute_capability))
                print(report(checked[-1]), flush=True)
            except LabError as error:
                errors.append(f"{task.name}: {error}")
        if options.json and not errors:
            write_bytes(json.dumps([asdict(one) for one in checked], indent=1).encode() + b"\n", options.json)
    except LabError as error:
        errors.append(str(error))
    if checked:
        print(EVIDENCE)
    for text in errors:
        print(f"error: {text}", file=sys.stderr)
    return 2 if errors else int(not all(one.ok for one in checked))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m optimize.placement",
        description="Whether TensorRT puts INT8 where a bundle's files ask for it, told without a GPU.",
        epilog="example: python -m optimize.placement runs/demo/bundle --compute-capability 8.6",
    )
    parser.add_argument("path", type=Path, metavar="BUNDLE", help="a bundle's folder, or one .onnx file")
    parser.add_argument(
        "--variant", nargs="+", metavar="NAME", help="which variants (default: all that are for TensorRT)"
    )
    parser.add_argument(
        "--compute-capability", nargs="+", default=list(COMPUTE_CAPABILITIES), metavar="X.Y",
        help=f"what to build for (default: {' '.join(COMPUTE_CAPABILITIES)})",
    )  # fmt: skip
    parser.add_argument(
        "--keep-float", nargs="+", default=[], metavar="NODE",
        help="layers of an .onnx file that are to be in float; a bundle knows its own",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it to this JSON file too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
