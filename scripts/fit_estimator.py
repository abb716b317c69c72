"""`python -m scripts.fit_estimator`: the estimator against published figures, each device left out in turn.

Prints the tables of docs/estimator.md; with `--write` it also writes the constants that `deploy` uses.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TypeVar

from deploy.latency_model import CONSTANTS, Fitted, PowerFit, Spread, watts
from optimize.files import write_bytes
from scripts.published_latency import Row, read_rows, resnet50

START = Fitted(
    launch_clocks=10_000, product_share=0.7, load_bytes=64, memory_share=0.8, cache_share=0.5,
    volta_launch=1.5, untuned=1.2, dla_product_share=0.8, dla_memory_share=0.2,
)  # fmt: skip
POWER_START = PowerFit(board_w=4.0, memory_w_per_gb_per_s=0.06, pj_per_op=0.4, volta_pj_per_op=1.2)
SMOOTH = 0.05
"""Errors below this weigh by their square, larger ones by themselves: outliers pull no harder than others."""
T = TypeVar("T", Fitted, PowerFit)


def fit(start: T, loss: Callable[[T], float], last_step: float = 0.004) -> T:
    """The least loss that steps of one number at a time lead to, from 40 % to 0.4 %; then again from there.

    It ends where a new beginning leads nowhere. Shares stay at most 1. The result has three digits.
    """
    best, least = start, loss(start)
    while True:
        found, cost = _descend(best, least, loss, last_step)
        if cost > least - 1e-6:
            return best
        best, least = found, cost


def _descend(best: T, least: float, loss: Callable[[T], float], last_step: float) -> tuple[T, float]:
    step = 0.4
    while step > last_step:
        moved = False
        for name in (item.name for item in fields(best)):
            for factor in (1 + step, 1 / (1 + step)):
                value = float(f"{getattr(best, name) * factor:.3g}")
                if name.endswith("share") and value > 1:
                    continue
                tried = replace(best, **{name: value})
                cost = loss(tried)
                if cost < least - 1e-9:
                    best, least, moved = tried, cost, True
        if not moved:
            step /= 1.6
    return best, least


def fit_latency(rows: Sequence[Row], start: Fitted = START) -> Fitted:
    return fit(start, lambda fitted: latency_loss(rows, fitted))


def latency_loss(rows: Sequence[Row], fitted: Fitted) -> float:
    """Mean of the smoothed |log error|; a device with many figures weighs less than its share of them."""
    return _loss(rows, [row.error(fitted) for row in rows])


def power_rows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.wall_w is not None]


def power_error(row: Row, power: PowerFit) -> float:
    """Predicted over published watts, less 1."""
    ops = 2 * sum(layer.macs for layer in row.gpu_layers) / row.batch
    assert row.wall_w is not None
    return watts(row.processor, ops * row.images_per_s, power) / row.wall_w - 1


def fit_power(rows: Sequence[Row], start: PowerFit = POWER_START) -> PowerFit:
    return fit(start, lambda power: _loss(rows, [power_error(row, power) for row in rows]))


def _loss(rows: Sequence[Row], errors: Iterable[float]) -> float:
    count = {row.device: sum(other.device == row.device for other in rows) for row in rows}
    weights = [count[row.device] ** -0.5 for row in rows]
    costs = [math.hypot(math.log1p(error), SMOOTH) for error in errors]
    return float(sum(w * c for w, c in zip(weights, costs, strict=True)) / sum(weights))


@dataclass(frozen=True)
class Unseen:
    """A row, with its error by all rows' fit and by one that has not seen its device."""

    row: Row
    fitted: float
    left_out: float


def leave_out(
    rows: Sequence[Row], whole: T, again: Callable[[list[Row], T], T], error: Callable[[Row, T], float]
) -> list[Unseen]:
    found = []
    for device in dict.fromkeys(row.device for row in rows):
        without = again([row for row in rows if row.device != device], whole)
        found += [Unseen(row, error(row, whole), error(row, without)) for row in rows if row.device == device]
    return found


def spread(errors: Iterable[float]) -> Spread:
    """Factors on a prediction between which eight of ten of what was measured lie."""
    ratios = sorted(1 / (1 + error) for error in errors)
    deciles = statistics.quantiles(ratios, n=10, method="inclusive")
    return Spread(low=float(f"{deciles[0]:.3g}"), high=float(f"{deciles[-1]:.3g}"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.fit_estimator", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write deploy/{CONSTANTS.name} too")
    options = parser.parse_args()
    network = resnet50()
    rows = read_rows(network)
    fitted, power = fit_latency(rows), fit_power(power_rows(rows))
    unseen = leave_out(rows, fitted, fit_latency, lambda row, numbers: row.error(numbers))
    unseen_power = leave_out(power_rows(rows), power, fit_power, power_error)
    found = {
        "latency": asdict(fitted),
        "spread": asdict(spread(one.left_out for one in unseen)),
        "power": asdict(power),
        "power_spread": asdict(spread(one.left_out for one in unseen_power)),
    }
    if options.write:
        update_constants(found)
    print(report(found, unseen, unseen_power, read_rows(network, "beyond_the_engine")))
    return 0


def update_constants(found: dict[str, dict[str, float]]) -> None:
    """Replace these parts of the file of constants; the others stay."""
    known = json.loads(CONSTANTS.read_text(encoding="utf-8")) if CONSTANTS.exists() else {}
    write_bytes((json.dumps(known | found, indent=1) + "\n").encode(), CONSTANTS)


def report(
    found: dict[str, dict[str, float]],
    unseen: Sequence[Unseen],
    unseen_power: Sequence[Unseen],
    beyond: Sequence[Row],
) -> str:
    """The page's tables, in Markdown."""
    lines = ["| number | value |", "|---|---|"]
    lines += [
        f"| {part}.{name} | {value:g} |" for part, numbers in found.items() for name, value in numbers.items()
    ]
    lines += [
        "",
        "| device | published by | runs on | precision | batch | published | error | left out |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [f"{_about(one.row)} | {one.fitted:+.0%} | {one.left_out:+.0%} |" for one in unseen]
    lines += ["", "| device | figures | median error | worst error |", "|---|---|---|---|"]
    for device in dict.fromkeys(one.row.device for one in unseen):
        errors = [abs(one.left_out) for one in unseen if one.row.device == device]
        lines.append(f"| {device} | {len(errors)} | {statistics.median(errors):.0%} | {max(errors):.0%} |")
    lines += ["", _summary("time", unseen), ""]
    lines += [
        "| device | published by | batch | W at the wall | error | error, device left out |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.row.device} | {one.row.source} {one.row.round} | {one.row.batch} | {one.row.wall_w:g} | "
        f"{one.fitted:+.0%} | {one.left_out:+.0%} |"
        for one in unseen_power
    ]
    lines += ["", _summary("power", unseen_power), ""]
    fitted = Fitted(**found["latency"])
    lines += [
        "| device | published by | runs on | precision | batch | published | published over estimated time |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [f"{_about(row)} | {1 / (1 + row.error(fitted)):.1f} |" for row in beyond]
    return "\n".join(lines)


def _about(row: Row) -> str:
    source = " ".join(filter(None, (row.source, row.round)))
    return f"| {row.device} | {source} | {row.runs_on} | {row.precision} | {row.batch} | {row.published}"


def _summary(what: str, unseen: Sequence[Unseen]) -> str:
    parts = []
    for name, errors in (
        ("fitted", [abs(one.fitted) for one in unseen]),
        ("with the device left out of the fit", [abs(one.left_out) for one in unseen]),
    ):
        parts.append(f"{name}: median {statistics.median(errors):.1%}, worst {max(errors):.0%}")
    return f"Absolute error of the {what} over {len(unseen)} figures, {'; '.join(parts)}."


if __name__ == "__main__":
    sys.exit(main())
