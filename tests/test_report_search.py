"""The report of compression: what the gate left out, the front, a search's trials, a chain's stages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.results import Accuracy, Measurement, append_measurements
from optimize.stage import StageRecord
from optimize.trials import Point, Tried
from scripts.report import main
from tests.test_deploy_bundle import tiny_bundle
from tests.test_deploy_measure import measurement
from tests.test_report import figures_of, page_of

ORIGINAL = Tried(Point(1.0, 1.0, "fp32"), "x", 0.9, 0.0, 1.0, 1.0, 1.0, 1000)
TRIALS = [
    ORIGINAL,
    replace(ORIGINAL, point=Point(1.0, 1.0, "int8"), top1=0.895, drop=0.5, latency=0.5, size=0.25),
    replace(ORIGINAL, point=Point(0.5, 1.0, "fp32"), top1=0.8, drop=10.0, latency=0.6, size=0.5),
    # Behind the one before in the plane, but its file is the smallest.
    replace(ORIGINAL, point=Point(0.5, 1.0, "int8"), top1=0.89, drop=1.0, latency=0.55, size=0.125),
]
ORDER = StageRecord("original", {}, "ab", 1000, 4000, 4 << 20, 0.9, 360, 0.0, 2.0, 1.0, {})
STAGES = [ORDER, replace(ORDER, stage="prune", macs=2000, top1=0.89, drop=1.0, latency_ms=1.0, speedup=2.0)]


def variant(name: str, p50_ms: float, top1: float) -> Measurement:
    precision = "fp32" if "fp32" in name else "int8"
    return measurement(name, p50_ms, precision=precision, accuracy=Accuracy(top1, 360, 0.9))


def judged(run: Path, *failed: str) -> None:
    """A bundle of fp32 and int8 that a gate has judged."""
    tiny_bundle(run)
    path = run / "bundle" / "bundle.json"
    raw = json.loads(path.read_text())
    for one in raw["variants"]:
        lost = 2.25 if one["name"] in failed else 0.0
        one["metrics"]["gate"] = {"max_drop": 0.5, "drop": lost, "passed": not lost}
    path.write_text(json.dumps(raw))


def write_search(run: Path) -> None:
    (run / "search.json").write_text(json.dumps({"settings": {}, "trials": [asdict(one) for one in TRIALS]}))


def write_chain(run: Path) -> None:
    for number, stage in enumerate(STAGES):
        folder = run / "optimize" / f"{number}-{stage.stage}"
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(asdict(stage)))


def report(run: Path) -> tuple[str, dict[str, Any]]:
    assert main([str(run)]) == 0
    page = page_of(run)
    return page, figures_of(page)


def test_what_the_gate_left_out_is_marked_and_does_not_lead_the_page(tmp_path: Path) -> None:
    append_measurements(
        tmp_path / "results.jsonl",
        [variant("fp32", 4.0, 0.9), variant("int8", 2.0, 0.9), variant("pruned-int8", 1.0, 0.5)],
    )
    judged(tmp_path)
    page, figures = report(tmp_path)
    lines = [line for line in page.split("<tr>") if "below the gate: not in the bundle" in line]
    assert [line.startswith("<td> pruned-int8<") for line in lines] == [True]
    assert "Latency p50, int8" in page
    symbols = {t["name"]: t["marker"]["symbol"] for t in figures["trade-off"]["data"] if t["name"] != "front"}
    assert symbols == {"fp32": "circle", "int8": "circle", "pruned-int8": "circle-open"}


def test_what_is_shipped_although_it_failed_is_marked(tmp_path: Path) -> None:
    append_measurements(tmp_path / "results.jsonl", [variant("fp32", 4.0, 0.9), variant("int8", 2.0, 0.8775)])
    judged(tmp_path, "int8")
    page, _ = report(tmp_path)
    assert page.count("GATE: 2.25 points lost, shipped all the same") == 1
    assert "not in the bundle<" not in page


def test_without_a_bundle_or_a_gate_nothing_is_marked_as_failed(tmp_path: Path) -> None:
    append_measurements(tmp_path / "results.jsonl", [variant("fp32", 4.0, 0.9), variant("other", 2.0, 0.8)])
    assert "not in the bundle<" not in report(tmp_path)[0]
    tiny_bundle(tmp_path)
    page, _ = report(tmp_path)
    assert '<small class="bad">not in the bundle</small>' in page
    assert "below the gate" not in page


def test_a_broken_gate_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged(tmp_path)
    path = tmp_path / "bundle" / "bundle.json"
    path.write_text(path.read_text().replace('"max_drop": 0.5', '"max_drop": "x"'))
    assert main([str(tmp_path)]) == 2
    assert "the gate of fp32 cannot be read" in capsys.readouterr().err


def test_the_front_is_what_nothing_beats_and_only_it_and_fp32_have_names(tmp_path: Path) -> None:
    append_measurements(
        tmp_path / "results.jsonl",
        [
            variant("fp32", 4.0, 0.9),
            variant("better", 3.0, 0.92),
            variant("fast", 1.0, 0.8),
            variant("slower", 1.5, 0.8),
            variant("worse", 3.5, 0.7),
        ],
    )
    line, *points = report(tmp_path)[1]["trade-off"]["data"]
    assert list(zip(line["x"], line["y"], strict=True)) == [(1.0, 80.0), (3.0, 92.0)]
    assert {p["name"] for p in points if "text" in p["mode"]} == {"fp32", "better", "fast"}
    full = max(p["marker"]["opacity"] for p in points)
    assert {p["name"] for p in points if p["marker"]["opacity"] == full} == {"better", "fast"}


def test_a_search_has_its_trials_its_front_and_its_gate(tmp_path: Path) -> None:
    judged(tmp_path)
    append_measurements(tmp_path / "results.jsonl", [variant("fp32", 4.0, 0.9)])
    write_search(tmp_path)
    page, figures = report(tmp_path)
    line, fp32, int8 = figures["search-0"]["data"]
    assert list(zip(line["x"], line["y"], strict=True)) == [(0.5, 89.5), (1.0, 90.0)]
    assert (fp32["name"], fp32["x"], int8["name"], int8["y"]) == ("fp32", [1.0, 0.6], "int8", [89.5, 89.0])
    full, faint = fp32["marker"]["opacity"]
    assert full > faint
    assert int8["marker"]["opacity"] == [full, full]
    assert "keep 0.5, energy 1, int8" in int8["text"][1]
    (gate,) = figures["search-0"]["layout"]["shapes"]
    assert gate["y0"] == gate["y1"] == 89.5
    ahead, behind = page.split("On the front</td>")[1].split("</table>")[0].split("Behind it</td>")
    assert re.findall(r"<td>(\d\d\.\d\d%)</td>", ahead) == ["89.50%", "89.00%", "90.00%"]
    assert re.findall(r"<td>(\d\d\.\d\d%)</td>", behind) == ["80.00%"]
    assert "GATE -10.00" in behind
    assert "GATE -0.50" not in page  # it stays within the gate, to the last bit
    assert "is not there" not in page  # a search has no curves to miss


def test_a_search_that_has_no_bundle_yet(tmp_path: Path) -> None:
    write_search(tmp_path)
    page, figures = report(tmp_path)
    assert set(figures) == {"search-0"}
    assert figures["search-0"]["layout"]["shapes"] == []
    assert "GATE" not in page
    assert "bundle/bundle.json is not there" in page
    assert "metrics.jsonl is not there" not in page


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", '{"trials": [1]}', '{"trials": [{"point": {}}]}', "text", "NaN"],
)
def test_a_broken_search_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    write_search(tmp_path)
    path = tmp_path / "search.json"
    whole = path.read_text()
    broken = {"text": whole.replace("0.895", '"x"'), "NaN": whole.replace("0.895", "NaN")}
    path.write_text(broken.get(bad, bad))
    assert main([str(tmp_path)]) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_chain_has_its_stages_in_order(tmp_path: Path) -> None:
    write_chain(tmp_path)
    page, figures = report(tmp_path)
    assert page.index("<td>0-original</td>") < page.index("<td>1-prune</td>")
    assert "<td>89.00%</td><td>-1.00</td><td>1.000</td><td>2.00x</td>" in page
    assert figures["stages-0"]["data"][0]["y"] == [90.0, 89.0]
    assert {t["name"]: t["y"][1] for t in figures["left-0"]["data"]} == {
        "size": 1.0, "MACs": 0.5, "latency": 0.5,
    }  # fmt: skip
    judged(tmp_path)
    page, figures = report(tmp_path)
    assert page.count("GATE -1.00") == 1
    assert figures["stages-0"]["layout"]["shapes"][0]["y0"] == 89.5


def test_a_chain_that_was_not_timed(tmp_path: Path) -> None:
    write_chain(tmp_path)
    for path in tmp_path.glob("optimize/*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"latency_ms": None, "speedup": None}))
    page, figures = report(tmp_path)
    assert "<td>-1.00</td><td>-</td><td>-</td>" in page
    assert [t["name"] for t in figures["left-0"]["data"]] == ["size", "MACs"]


@pytest.mark.parametrize("bad", ["{", "[]", "{}", '{"parameters": "x"}'])
def test_a_broken_stage_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    write_chain(tmp_path)
    path = tmp_path / "optimize" / "1-prune" / "record.json"
    path.write_text(bad)
    assert main([str(tmp_path)]) == 2
    assert f"{path} is no record of a stage" in capsys.readouterr().err


def test_a_run_without_compression_has_no_sections_of_it(tmp_path: Path) -> None:
    append_measurements(tmp_path / "results.jsonl", [variant("fp32", 4.0, 0.9)])
    page, figures = report(tmp_path)
    assert set(figures) == {"trade-off", "histogram", "tail"}
    for heading in ("Search", "Trials", "Compression"):
        assert f"<h2>{heading}" not in page


def test_the_report_starts_without_torch() -> None:
    code = "import sys, scripts.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
