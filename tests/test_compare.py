"""Two results files: a difference is called one where it is more than noise, and no oftener."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.compare import compare, differences, interval, turns_of
from deploy.device_state import DeviceState
from deploy.measure import Turn, summarise
from deploy.results import Measurement, States, append_measurements
from scripts.check_compare import shares
from tests.test_deploy_measure import measurement


def run(seed: int, factor: float = 1.0, apart: tuple[float, ...] = (1, 1, 1), **changes: Any) -> Measurement:
    """Three turns of 200 queries of about 2 ms; `apart`: what each turn takes of it."""
    rng = np.random.default_rng(seed)
    parts = [2 * factor * part * np.exp(0.02 * rng.normal(size=200)) for part in apart]
    samples = tuple(np.concatenate(parts).tolist())
    turns = tuple(Turn(float(i), float(part.sum()) / 1e3, 200) for i, part in enumerate(parts))
    return measurement(latency=summarise(samples), latency_samples_ms=samples, turns=turns, **changes)


def rates(*per_s: float) -> Measurement:
    turns = tuple(Turn(float(i), 1.0, round(rate)) for i, rate in enumerate(per_s))
    return measurement(kind="throughput", latency=None, latency_samples_ms=(), turns=turns)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, "no difference seen"), (1.05, "slower"), (0.95, "faster")]
)
def test_a_difference_is_told_with_its_direction(factor: float, verdict: str) -> None:
    found = compare([run(0)], [run(1, factor)])
    assert [(one.name, one.batch, one.statistic) for one in found] == [
        ("fp32 (onnxruntime)", 1, "p50"),
        ("fp32 (onnxruntime)", 1, "mean"),
    ]
    for one in found:
        assert one.low < one.ratio < one.high
        assert one.ratio == pytest.approx(factor, rel=0.01)
        assert one.verdict == verdict


def test_turns_that_lie_apart_make_a_difference_of_their_size_noise() -> None:
    """One slow turn in each run, not the same: all samples of a block bootstrap alone would be too sure."""
    a, b = run(0, apart=(1, 1, 1.1)), run(1, 1.04, apart=(1.1, 1, 1))
    assert [one.verdict for one in compare([a], [b])] == ["no difference seen"] * 2


def test_throughput_is_compared_by_its_turns() -> None:
    (faster,) = compare([rates(100, 101, 99)], [rates(121, 120, 119)])
    assert (faster.statistic, faster.verdict) == ("images/s", "faster")
    assert faster.ratio == pytest.approx(1.2, rel=0.001)
    (none,) = compare([rates(100, 110, 90)], [rates(105, 95, 108)])
    assert none.verdict == "no difference seen"
    (uneven,) = compare([rates(10, 200, 90)], [rates(100, 101, 99)])
    assert uneven.a == uneven.b == 100  # all images over all of the time, as the results' table has it


def test_more_runs_give_a_narrower_interval() -> None:
    def width(count: int) -> float:
        (p50, _) = compare([run(i) for i in range(count)], [run(9 + i) for i in range(count)])
        return p50.high - p50.low

    assert width(6) < width(1)


def test_the_same_files_give_the_same_interval() -> None:
    turns = [np.asarray(run(0).latency_samples_ms)]
    assert interval(turns * 3, turns * 3, "p50") == interval(turns * 3, turns * 3, "p50")
    assert interval([np.ones(50)] * 2, [np.ones(50)] * 2, "p50") == (1, 1, 1)


def test_a_file_without_turns_is_cut_into_as_many() -> None:
    uneven = replace(run(0), turns=tuple(Turn(0.0, 1.0, count) for count in (100, 200, 300)))
    assert [len(turn) for turn in turns_of(uneven)] == [100, 200, 300]
    old = replace(run(0), turns=())
    assert [len(turn) for turn in turns_of(old)] == [200] * 3
    np.testing.assert_array_equal(np.concatenate(turns_of(old)), old.latency_samples_ms)
    (p50, _) = compare([old], [run(1, 1.05)])
    assert p50.verdict == "slower"


@pytest.mark.parametrize("kind", ["AR(1) 0.9", "AR(1) 0.9, turns 2 %"])
def test_noise_is_seldom_called_a_difference(kind: str) -> None:
    """Of 40 pairs two are expected at most; more than six would be once in 200 such tests."""
    p50, mean, _ = shares(kind, pairs=40, queries=200, seed=1)
    assert p50 <= 6 / 40
    assert mean <= 6 / 40


def test_what_else_is_not_the_same_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = DeviceState({}, {}, "15W", ())
    fast = replace(slow, power_mode="MAXN")
    a = run(0, states=States(slow, (), slow, ()))
    b = run(1, 0.8, states=States(fast, (), fast, ("the clock gpu moved",)), backend_version="1.3.0")
    assert differences([a], [a]) == []
    append_measurements(tmp_path / "a.jsonl", [a])
    append_measurements(tmp_path / "b.jsonl", [b])
    assert main(["bench", "--compare", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "not the same in both: power mode: 15W in A, MAXN in B",
        "not the same in both: backend: onnxruntime 1.2.3 in A, onnxruntime 1.3.0 in B",
        "not the same in both: B: the clock gpu moved",
    ]
    assert sum(line.endswith("faster") for line in lines) == 2


def test_only_what_the_two_have_in_common_is_held_against_each_other() -> None:
    a = [rates(100, 101, 99), replace(run(0), sha256="c" * 64)]
    b = [replace(rates(99, 100, 101), in_flight=2), run(1), replace(run(1, variant="int8"), threads=7)]
    assert differences(a, b) == [
        "queries in flight: 1 (fp32, batch 1, throughput) in A, 2 (fp32, batch 1, throughput) in B",
        "model file: cccccccccccc (fp32) in A, nothing else in B",
    ]


def test_files_with_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append_measurements(tmp_path / "a.jsonl", [run(0)])
    append_measurements(tmp_path / "b.jsonl", [run(0, variant="int8")])
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert main(["bench", "--compare", *files]) == 2
    assert "no variant, backend and batch in common" in capsys.readouterr().err
    assert main(["bench", "--compare", files[0], str(tmp_path / "none.jsonl")]) == 2
    assert main(["bench"]) == 2
    assert "no bundle: give its folder" in capsys.readouterr().err
