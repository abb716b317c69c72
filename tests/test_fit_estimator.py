"""The fitted constants, the figures that they come from, and the page that shows both."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict, replace

import pytest

from deploy.latency_model import CONSTANTS, Constants
from scripts.fit_estimator import (
    START,
    Unseen,
    fit_latency,
    fit_power,
    leave_out,
    power_error,
    power_rows,
    report,
    spread,
)
from scripts.published_latency import Network, Row, read_rows, resnet50
from tests.processes import ROOT

_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*")


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet50()


@pytest.fixture(scope="module")
def rows(network: Network) -> list[Row]:
    return read_rows(network)


def test_resnet50_is_what_its_literature_says(network: Network) -> None:
    """4.089 GMACs at 224 px; 25.557 M parameters, less 53,120 of BatchNorm, which leave 26,560 biases."""
    for precision in ("fp32", "fp16", "int8"):
        layers = network[precision]
        assert sum(layer.macs for layer in layers) == 4_089_184_256
        assert sum(layer.num_parameters for layer in layers) == 25_557_032 - 53_120 // 2 - 26_560
        products = [layer for layer in layers if layer.macs]
        assert [layer.kind for layer in products] == ["conv"] * 53 + ["gemm"]
        assert {layer.precision for layer in products} == {precision}
    # 16 residual adds are in convolutions; the two pools are by themselves, and the picture is quantised.
    assert [len(network[name]) for name in ("fp32", "fp16", "int8")] == [56, 57, 57]


def test_the_constants_are_where_the_fit_ends(rows: list[Row]) -> None:
    known = Constants.read()
    assert fit_latency(rows, known.latency) == known.latency
    assert fit_power(power_rows(rows), known.power) == known.power


def test_eight_of_ten_figures_lie_in_their_range(rows: list[Row]) -> None:
    known = Constants.read()
    ratios = [1 / (1 + row.error(known.latency)) for row in rows]
    inside = [known.spread.low <= ratio <= known.spread.high for ratio in ratios]
    assert sum(inside) / len(inside) >= 0.8
    power = [1 / (1 + power_error(row, known.power)) for row in power_rows(rows)]
    assert sum(known.power_spread.low <= ratio <= known.power_spread.high for ratio in power) >= 8


def test_the_median_error_is_under_a_quarter(rows: list[Row]) -> None:
    known = Constants.read().latency
    assert statistics.median(abs(row.error(known)) for row in rows) < 0.25


def test_the_spread_holds_eight_of_ten() -> None:
    found = spread(1 / ratio - 1 for ratio in [0.5, *[1.0] * 8, 2.0, 0.9])
    assert 0.5 < found.low <= 0.9
    assert found.high == 1.0


def test_a_figure_is_read_with_its_clocks_and_cards(rows: list[Row]) -> None:
    quiet = next(r for r in rows if r.device == "AGX Orin" and r.round == "v3.0 MaxQ" and r.batch == 256)
    assert quiet.processor.clock_ghz == 0.62475
    assert quiet.processor.dla_ghz == (0.8832, 0.8832)
    assert quiet.processor.memory_gb_per_s == 136.5
    eight = next(r for r in rows if r.published == "727,437/s, 8 cards")
    assert eight.images_per_s == pytest.approx(727437 / 8)


@pytest.mark.slow
def test_the_page_and_the_constants_hold_what_the_script_finds(network: Network, rows: list[Row]) -> None:
    fitted, power = fit_latency(rows, START), fit_power(power_rows(rows))
    unseen: list[Unseen] = leave_out(rows, fitted, fit_latency, lambda row, numbers: row.error(numbers))
    unseen_power = leave_out(power_rows(rows), power, fit_power, power_error)
    found = {
        "latency": asdict(fitted),
        "spread": asdict(spread(one.left_out for one in unseen)),
        "power": asdict(power),
        "power_spread": asdict(spread(one.left_out for one in unseen_power)),
    }
    known = json.loads(CONSTANTS.read_text())
    for name, numbers in found.items():
        assert known[name] == pytest.approx(numbers, rel=0.03), name
    page = report(found, unseen, unseen_power, read_rows(network, "beyond_the_engine")).splitlines()
    written = (ROOT / "docs" / "estimator.md").read_text().splitlines()
    start = written.index(page[0])
    for line, there in zip(page, written[start : start + len(page)], strict=True):
        # Another CPU ends the fit in the last digits of the same place: a percent may round the other way.
        assert _NUMBER.sub("#", line) == _NUMBER.sub("#", there)
        numbers_of = [[float(n.replace(",", "")) for n in _NUMBER.findall(text)] for text in (line, there)]
        assert numbers_of[0] == pytest.approx(numbers_of[1], rel=0.03, abs=2), line


@pytest.mark.slow
def test_the_fit_finds_what_made_the_figures(rows: list[Row]) -> None:
    true = replace(START, launch_clocks=6000, product_share=0.5, memory_share=0.6, untuned=1.5)
    made = [replace(row, images_per_s=row.predicted(true)) for row in rows]
    found = fit_latency(made)
    assert statistics.median(abs(row.error(found)) for row in made) < 0.02
    assert found.launch_clocks == pytest.approx(6000, rel=0.1)
    assert found.untuned == pytest.approx(1.5, rel=0.1)
