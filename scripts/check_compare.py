"""`python -m scripts.check_compare`: how often `bench --compare` calls noise a difference, by simulation.

Latencies of two runs that are the same: lognormal noise whose neighbours are alike (AR(1)), rare outliers,
and in the last rows turns that differ as a whole. Goal: about 5 % at most. The last column: how often a run
that is 2 % slower is called slower.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from deploy.compare import Floats, interval

ROUNDS = 3
KINDS = {  # correlation of neighbours, noise, how far whole turns lie apart (both as shares of the latency)
    "independent": (0.0, 0.05, 0.0),
    "AR(1) 0.5": (0.5, 0.05, 0.0),
    "AR(1) 0.9": (0.9, 0.05, 0.0),
    "AR(1) 0.99": (0.99, 0.05, 0.0),
    "AR(1) 0.9, turns 0.5 %": (0.9, 0.05, 0.005),
    "AR(1) 0.9, turns 2 %": (0.9, 0.05, 0.02),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.check_compare", description=__doc__)
    parser.add_argument("--pairs", type=int, default=200, help="of runs, of each kind (default: 200)")
    parser.add_argument("--queries", type=int, default=600, help="in a turn (default: 600)")
    options = parser.parse_args()
    print("noise                     p50: called a difference  mean: called a difference  2 % slower is seen")
    for number, kind in enumerate(KINDS):
        p50, mean, seen = shares(kind, options.pairs, options.queries, number)
        print(f"{kind:24}  {p50:23.1%}  {mean:24.1%}  {seen:17.1%}")
    return 0


def shares(kind: str, pairs: int, queries: int, seed: int) -> tuple[float, float, float]:
    """(p50 called different where it is the same, mean likewise, 2 % more called slower by p50)."""
    rng = np.random.default_rng(seed)
    p50 = mean = seen = 0
    for _ in range(pairs):
        a, b = run(rng, kind, queries), run(rng, kind, queries)
        p50 += not _holds_one(interval(a, b, "p50"))
        mean += not _holds_one(interval(a, b, "mean"))
        seen += interval(a, [1.02 * turn for turn in b], "p50")[1] > 1
    return p50 / pairs, mean / pairs, seen / pairs


def run(rng: np.random.Generator, kind: str, queries: int) -> Sequence[Floats]:
    """Latencies of each turn, ms, about 1."""
    correlation, noise, apart = KINDS[kind]
    found = []
    for _ in range(ROUNDS):
        steps = rng.normal(size=queries) * np.sqrt(1 - correlation**2)
        steps[0] = rng.normal()
        for i in range(1, queries):
            steps[i] += correlation * steps[i - 1]
        outliers = np.where(rng.random(queries) < 0.005, rng.exponential(2.0, queries), 0.0)
        found.append(np.exp(noise * steps + apart * rng.normal()) + outliers)
    return found


def _holds_one(found: tuple[float, float, float]) -> bool:
    _, low, high = found
    return low <= 1 <= high


if __name__ == "__main__":
    sys.exit(main())
