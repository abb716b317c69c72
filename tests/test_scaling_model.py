"""The formula of docs/scaling.md, term by term, and that the page holds what the script prints."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from scripts.scaling_model import (
    SYSTEMS,
    Cluster,
    Parameters,
    errors,
    exchange_s,
    fit,
    predict,
    report,
    step_s,
)
from tests.processes import ROOT

CLUSTER = Cluster(gpus_per_node=8, inside=100.0, network=10.0, latency_us=0.0)
IDEAL = Parameters(efficiency=1.0, spread=0.0, fixed_ms=0.0)


def test_the_exchange_is_a_ring_inside_and_one_between_the_nodes() -> None:
    assert exchange_s(CLUSTER, 8, 100.0, 1.0) == pytest.approx(2 * 7 / 8 * 0.1 / 100)
    assert exchange_s(CLUSTER, 8, 100.0, 0.5) == pytest.approx(2 * 7 / 8 * 0.1 / 50)
    two_nodes = 2 * 7 / 8 * 0.1 / 100 + 2 * 1 / 2 * 0.1 / 10
    assert exchange_s(CLUSTER, 16, 100.0, 1.0) == pytest.approx(two_nodes)
    slow = replace(CLUSTER, latency_us=10.0)
    assert exchange_s(slow, 16, 100.0, 1.0) - two_nodes == pytest.approx((14 + 2) * 10e-6)


def test_the_backward_pass_hides_the_exchange_but_for_its_last_bucket() -> None:
    exchange = exchange_s(CLUSTER, 16, 100.0, 1.0)
    last = 25 * 2**20 / 100e6 * exchange
    hidden = step_s(CLUSTER, 16, 64, 0.001, 100.0, IDEAL)
    assert hidden == pytest.approx(0.064 + last)
    bare = step_s(CLUSTER, 16, 64, 0.0, 100.0, IDEAL)
    assert bare == pytest.approx(exchange)
    assert step_s(CLUSTER, 1, 64, 0.001, 100.0, IDEAL) == pytest.approx(0.064)


def test_all_wait_for_the_slowest_and_pay_what_is_fixed() -> None:
    given = Parameters(efficiency=1.0, spread=0.02, fixed_ms=3.0)
    more = step_s(CLUSTER, 16, 64, 0.001, 100.0, given) - step_s(CLUSTER, 16, 64, 0.001, 100.0, IDEAL)
    assert more == pytest.approx(0.003 + 0.02 * math.sqrt(2 * math.log(16)) * 0.064)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_each_system_starts_from_what_was_measured(system: object) -> None:
    (found,) = [s for s in SYSTEMS if s is system]
    again = replace(found, rest=(found.start,))
    assert errors([again], Parameters(0.7, 0.01, 1.0)) == pytest.approx([0.0], abs=1e-6)


def test_the_fit_finds_what_made_the_figures() -> None:
    true = Parameters(efficiency=0.6, spread=0.01, fixed_ms=2.0)
    made = [
        replace(
            system,
            rest=tuple(replace(p, images_per_s=predict(system, p.gpus, p.batch, true)) for p in system.rest),
        )
        for system in SYSTEMS
    ]
    assert fit(made) == true


def test_the_page_holds_what_the_script_prints() -> None:
    assert report() in (ROOT / "docs" / "scaling.md").read_text()
