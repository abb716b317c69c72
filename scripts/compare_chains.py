"""Chains of compression beside each other, on several checkpoints: mean and deviation, one line a chain.

`python -m scripts.compare_chains --checkpoints runs/seed-*/checkpoint.pt --out runs/half \\
    "taylor: stages=[prune,finetune]" "random: stages=[prune,finetune] prune.importance=random"`
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.compress import LatencyConfig, OptimizeConfig
from configs.load import load, override
from deploy.errors import LabError
from optimize.chain import RECORD
from optimize.stage import StageRecord, compare_latency, file_of
from scripts.sweep import places_for
from train.checkpoint import read_facts
from train.launch import Child, run_children
from train.monitor import progress_bar


@dataclass(frozen=True)
class Chain:
    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Of one chain on one checkpoint, its last stage against the checkpoint."""

    top1: float
    drop: float
    """Points."""
    macs: float
    """Shares of the checkpoint's, here and below."""
    size: float
    latency: float | None
    snr_db: float | None = None
    """Of the INT8 file's logits, where it is one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where a chain failed, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_chains",
        description="Chains of compression beside each other, on several checkpoints.",
    )
    parser.add_argument("--checkpoints", nargs="+", type=Path, required=True, metavar="CHECKPOINT")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of all chains; one that is done is not run again"
    )
    parser.add_argument("--slots", type=int, default=1, help="chains at a time (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of timing for each file, in turns; 0: none (default: 1)"
    )
    parser.add_argument(
        "chains", nargs="+", metavar='"NAME: KEY=VALUE ..."', help="as python -m optimize takes them"
    )
    options = parser.parse_intermixed_args(argv)
    try:
        chains = [parse_chain(text) for text in options.chains]
        if len({folder_name(chain) for chain in chains}) < len(chains):
            raise LabError("two chains have one name: each has a folder of its own, so name them apart")
        for chain in chains:  # a mistake is told before hours of work
            load("optimize", OptimizeConfig, ["checkpoint=c", *chain.overrides])
        folders = {
            chain.name: [options.out / folder_name(chain) / str(n) for n, _ in enumerate(options.checkpoints)]
            for chain in chains
        }
        if not run_all(chains, options.checkpoints, folders, options.slots):
            return 1
        outcomes = {}
        for name, found in folders.items():
            pairs = list(zip(found, options.checkpoints, strict=True))
            outcomes[name] = [outcome(folder, checkpoint, options.seconds) for folder, checkpoint in pairs]
            controls = [control for folder in found if (control := control_of(folder))]
            if controls:
                outcomes[f"{name}: other random weights (control)"] = controls
        originals = [read_record(found, 0).top1 for found in next(iter(folders.values()))]
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = format_outcomes(originals, outcomes)
    (options.out / "table.md").write_text(table + "\n")
    print(table)
    return 0


def parse_chain(text: str) -> Chain:
    """Raises LabError where it has no name."""
    name, colon, overrides = text.partition(":")
    if not colon or not name.strip():
        raise LabError(f'{text!r}: give "NAME: KEY=VALUE ...", as in "taylor: stages=[prune,finetune]"')
    return Chain(name.strip(), tuple(shlex.split(overrides)))


def folder_name(chain: Chain) -> str:
    return re.sub(r"[^\w.]+", "-", chain.name).strip("-")


def run_all(
    chains: Sequence[Chain], checkpoints: Sequence[Path], folders: Mapping[str, Sequence[Path]], slots: int
) -> bool:
    """Every chain on every checkpoint, each in a process of its own; whether all ended well."""
    children = []
    for number, checkpoint in enumerate(checkpoints):
        read_facts(checkpoint)
        for chain in chains:
            out = folders[chain.name][number]
            # Timed afterwards, one file at a time.
            fixed = [override("checkpoint", str(checkpoint)), override("out", str(out)), "latency.seconds=0"]
            out.mkdir(parents=True, exist_ok=True)
            children.append(Child(["python", "-m", "optimize", *chain.overrides, *fixed], out / "chain.log"))
    with progress_bar("chains", enabled=True) as show:
        done = 0

        def ended(index: int, code: int) -> None:
            nonlocal done
            done += 1
            show(done, len(children))
            if code:
                print(f"error: exit code {code}, see {children[index].log}", file=sys.stderr, flush=True)

        return not any(run_children(children, places_for([], 1, slots), ended))


def outcome(folder: Path, checkpoint: Path, seconds: float) -> Outcome:
    last = last_stage(folder)
    first, record = read_record(folder, 0), read_record(folder, last)
    files = [folder / "0-original" / "fp32.onnx", stage_folder(folder, last) / file_of(record.stage)]
    times = compare_latency(files, read_facts(checkpoint).input_spec, LatencyConfig(1, seconds))
    agreement = record.found.get("agreement") if record.stage == "quantize" else None
    return Outcome(
        top1=record.top1,
        drop=record.drop,
        macs=record.macs / first.macs,
        size=stored_bytes(record) / first.onnx_bytes,
        latency=times[1] / times[0] if times else None,
        snr_db=agreement["snr_db"] if agreement else None,
    )


def stored_bytes(record: StageRecord) -> int:
    """Of the file, or of its weights with their codebooks, where they have some."""
    shared = record.found.get("shared_weights")
    return int(shared["file_bytes"] if shared else record.onnx_bytes)


def control_of(folder: Path) -> Outcome | None:
    """Of a lottery ticket: its masks on other random weights."""
    first, record = read_record(folder, 0), read_record(folder, last_stage(folder))
    if record.stage != "lottery":
        return None
    top1 = record.found["control_top1"]
    sizes = (record.macs / first.macs, record.onnx_bytes / first.onnx_bytes)
    return Outcome(top1, 100 * (first.top1 - top1), *sizes, latency=None)


def last_stage(folder: Path) -> int:
    return max(int(path.name.partition("-")[0]) for path in folder.iterdir() if path.is_dir())


def stage_folder(folder: Path, number: int) -> Path:
    return next(folder.glob(f"{number}-*"))


def read_record(folder: Path, number: int) -> StageRecord:
    record = StageRecord.read(stage_folder(folder, number) / RECORD)
    if record is None:
        raise LabError(f"{folder} has no record of stage {number}: give the command again")
    return record


def format_outcomes(originals: Sequence[float], outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Markdown: mean and sample deviation over the checkpoints; of latencies the median."""
    int8 = any(o.snr_db is not None for found in outcomes.values() for o in found)
    lines = [
        f"| chain | top-1, % ({len(originals)} checkpoints) | points | MACs | size | latency |",
        "|---|---|---|---|---|---|",
        f"| as it was | {spread([100 * top1 for top1 in originals])} | | | | |",
    ]
    if int8:
        lines = [line + cell for line, cell in zip(lines, (" logits, dB |", "---|", " |"), strict=True)]
    for name, found in outcomes.items():
        times = [o.latency for o in found if o.latency is not None]
        cells = [
            name,
            spread([100 * o.top1 for o in found]),
            spread([-o.drop for o in found], "+"),
            f"{statistics.mean(o.macs for o in found):.2f}",
            f"{statistics.mean(o.size for o in found):.3f}",
            f"{statistics.median(times):.2f}" if times else "",
        ]
        if int8:
            cells.append(spread([o.snr_db for o in found if o.snr_db is not None], digits=1))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "", digits: int = 2) -> str:
    if not values:
        return ""
    middle = format(statistics.mean(values), f"{sign}.{digits}f")
    return f"{middle} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else middle


if __name__ == "__main__":
    sys.exit(main())
