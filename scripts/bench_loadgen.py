"""`python -m scripts.bench_loadgen BUNDLE`: our p90 beside that of MLPerf's LoadGen.

The same variant, one query after the other at batch 1, in turns: ours, LoadGen's SingleStream, ours ... Each
turn of ours is `python -m deploy bench` in short, of LoadGen's `--scenario SingleStream`. Goal: within 3 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from deploy.backends import made_for, open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.errors import LabError
from deploy.loadgen import run_loadgen
from deploy.measure import measure_latency, percentile
from scripts.bench_lines import libraries_line, ratio_line

GOAL = "0.97 to 1.03"
ROUNDS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_loadgen", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--variant", nargs="+", metavar="NAME", help="(default: those made for the backend)")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each turn (default: 5)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"(default: {ROUNDS})")
    options = parser.parse_args()
    try:
        bundle = open_bundle(options.bundle)
        print(libraries_line("numpy", "onnxruntime", "openvino", "mlcommons-loadgen"))
        for name in options.variant or made_for(bundle, options.backend):
            ours, theirs = turns(
                bundle, name, options.backend, options.threads, options.seconds, options.rounds
            )
            print(f"{name}, {options.backend}, batch 1")
            for whose, found in (("ours", ours), ("LoadGen", theirs)):
                middle, span = statistics.median(found), f"{min(found):.4f} to {max(found):.4f}"
                print(f"  {whose:8} p90 {middle:.4f} ms ({span})")
            print(ratio_line("LoadGen / ours", theirs, ours, GOAL))
            of_medians = statistics.median(theirs) / statistics.median(ours)
            # A single p90 of a machine that others share moves by more than the goal.
            print(f"  of the two medians: {of_medians:.3f}; goal: {GOAL}")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def turns(
    bundle: Bundle, name: str, backend: str, threads: int | None, seconds: float, rounds: int
) -> tuple[list[float], list[float]]:
    """p90 in ms of each turn: (ours, LoadGen's). Each turn opens the file anew."""
    ours, theirs = [], []
    samples = bundle.tensors().arrays
    feed = {key: array[:1] for key, array in samples.items()}
    for number in range(rounds):
        for whose in ("ours", "LoadGen") if number % 2 == 0 else ("LoadGen", "ours"):
            if whose == "ours":
                with open_runner(bundle, name, backend, threads=threads) as runner:
                    found = measure_latency(
                        lambda: runner.infer(feed),
                        warmup_s=0.7, min_duration_s=seconds, min_count=100,
                    )  # fmt: skip
                ours.append(percentile(found, 90))
                continue
            with tempfile.TemporaryDirectory() as logs:
                m = run_loadgen(
                    bundle, name, "SingleStream", backend=backend, threads=threads, seconds=seconds,
                    logs=Path(logs),
                )  # fmt: skip
            assert m.loadgen is not None
            theirs.append(m.loadgen.percentiles_ms["90.00"])
    return ours, theirs


if __name__ == "__main__":
    sys.exit(main())
