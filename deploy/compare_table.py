"""Two results files held against each other, as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploy.compare import compare, differences
from deploy.errors import LabError
from deploy.results import Measurement, read_measurements
from deploy.table import aligned


def compare_files(a: Path, b: Path) -> str:
    """The differences of what was measured first, then each figure of both with its verdict.

    Raises LabError for a file that cannot be read, and for two with nothing in common.
    """
    first, second = read_measurements(a), read_measurements(b)
    found = compare(first, second)
    if not found:
        raise LabError(
            f"{a} and {b} have no variant, backend and batch in common: {_kinds(first)} and {_kinds(second)}"
        )
    other = differences(first, second)
    head = ["", "batch", "", "A", "B", "B / A", "95 % interval", "B is"]
    cells = [head] + [
        [
            one.name,
            str(one.batch),
            "images/s" if one.statistic == "images/s" else f"{one.statistic} ms",
            _number(one.a),
            _number(one.b),
            f"{one.ratio:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            one.verdict,
        ]
        for one in found
    ]
    return "\n".join(
        [
            f"A: {a}, {first[-1].created}",
            f"B: {b}, {second[-1].created}",
            *([f"not the same in both: {line}" for line in other] or ["machine and versions are the same"]),
            "",
            *aligned(cells, "<><>>>><"),
            "",
            "Intervals: the wider of a bootstrap over blocks of an eighth of a turn and a t interval over "
            "the turns;",
            "throughput has the second alone. Of twenty rows without a difference about one shows one.",
        ]
    )


def _kinds(measurements: Sequence[Measurement]) -> list[str]:
    return sorted({f"{m.variant} ({m.backend}, {m.kind}, batch {m.batch})" for m in measurements})


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
