"""A search tries each point once, goes on where it was, and ships what nothing beats."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from configs.compress import SearchConfig, SpaceConfig
from configs.load import load
from configs.schema import TrainConfig
from deploy.bundle import open_bundle
from deploy.errors import LabError
from deploy.results import read_measurements
from optimize.front import format_trials
from optimize.search import RECORD, main, read_trials, stages_of
from optimize.trials import Point, Tried, all_points, front, next_point
from tests.test_chain import TINY
from train.run import run

SPACE = SpaceConfig([1.0, 0.5, 0.25], [1.0, 0.8], ["fp32", "int8"])


def tried(point: Point, top1: float, latency: float, size: float) -> Tried:
    return Tried(point, "chains/x/1-y", top1, 100 * (0.9 - top1), latency, size, point.keep, 1000)


def measured(point: Point) -> Tried:
    """As if smaller were faster and worse."""
    share = point.keep * point.energy
    return tried(point, 0.5 + 0.4 * share, share, share / (4 if point.precision == "int8" else 1))


def searched(seed: int, upto: int = 99) -> list[Tried]:
    found: list[Tried] = []
    while len(found) < upto and (point := next_point(found, SPACE, seed)):
        found.append(measured(point))
    return found


def test_every_point_is_tried_once_and_the_original_first() -> None:
    found = searched(0)
    assert len(found) == 12
    assert {one.point for one in found} == set(all_points(SPACE))
    assert [one.point for one in found[:2]] == [Point(1.0, 1.0, "fp32"), Point(1.0, 1.0, "int8")]


def test_what_comes_next_follows_from_what_was() -> None:
    whole = searched(3)
    for count in (2, 5, 9):
        assert next_point(whole[:count], SPACE, 3) == whole[count].point
    assert [one.point for one in searched(4)] != [one.point for one in whole]


def test_the_front_is_what_nothing_beats() -> None:
    points = all_points(SPACE)
    best = tried(points[0], 0.9, 1.0, 1.0)
    fast = tried(points[1], 0.8, 0.5, 1.0)
    small = tried(points[2], 0.8, 0.9, 0.2)
    worse = tried(points[3], 0.8, 0.9, 0.3)
    twin = tried(points[4], 0.8, 0.5, 1.0)
    assert front([worse, best, small, fast, twin]) == [fast, twin, small, best]
    text = format_trials([worse, best, small, fast], 5.0)
    assert [line.lstrip()[0] == "*" for line in text.splitlines()[2:6]] == [True, False, True, True]
    assert "GATE: nothing that is faster than the original stays within gate.max_drop=5 points" in text
    assert "GATE" not in format_trials([worse, best, small, fast], 11.0)


def test_a_point_is_a_chain() -> None:
    assert stages_of(Point(1.0, 1.0, "fp32")) == []
    assert stages_of(Point(0.5, 1.0, "fp32")) == ["prune", "finetune"]
    assert stages_of(Point(1.0, 0.9, "int8")) == ["factorise", "finetune", "quantize"]
    assert stages_of(Point(0.5, 0.9, "qat")) == ["prune", "factorise", "finetune", "qat", "quantize"]


def test_a_search_with_other_settings_is_refused(tmp_path: Path) -> None:
    assert read_trials(tmp_path, {"seed": 0}) == []
    one = measured(Point(0.5, 0.8, "int8"))
    content = {
        "settings": {"seed": 0, "sha256": "a"},
        "trials": [asdict(one)],
    }
    (tmp_path / RECORD).write_text(json.dumps(content))
    assert read_trials(tmp_path, {"seed": 0, "sha256": "a"}) == [one]
    with pytest.raises(LabError, match=r"with other settings \(seed, sha256\): give another out="):
        read_trials(tmp_path, {"seed": 1, "sha256": "b"})
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(LabError, match="is no record of a search"):
        read_trials(tmp_path, {})


@pytest.mark.slow
def test_a_search_goes_on_and_ships_its_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    run(load("train", TrainConfig, [*TINY, *files, f"run_dir={tmp_path / 'run'}"]))
    overrides = [
        f"checkpoint={tmp_path / 'run' / 'checkpoint.pt'}", "space.keep=[1.0,0.6]", "space.energy=[1.0]",
        "prune.importance=l1", "finetune.epochs=1", "latency.seconds=0.05", "gate.max_drop=100",
        "calibration.num_images=8", "bench.seconds=0.05", "bench.batches=[1]", "num_samples=2",
    ]  # fmt: skip
    out = tmp_path / "run" / "search"
    main(load("search", SearchConfig, [*overrides, "budget=3"]), [])
    first = json.loads((out / RECORD).read_text())["trials"]
    assert len(first) == 3
    done = {path: path.stat().st_mtime_ns for path in out.glob("chains/*/*/record.json")}
    main(load("search", SearchConfig, [*overrides, "budget=9"]), [])
    assert "budget=9, but the space has 4 points: all are tried" in capsys.readouterr().out
    trials = json.loads((out / RECORD).read_text())["trials"]
    assert trials[:3] == first
    assert len(trials) == 4
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    names = [variant.name for variant in open_bundle(out / "bundle").variants]
    assert names[0] == "fp32"
    assert {m.variant for m in read_measurements(out / "results.jsonl")} <= set(names)
    with pytest.raises(LabError, match="holds a search with other settings"):
        main(load("search", SearchConfig, [*overrides, "seed=1"]), [])
