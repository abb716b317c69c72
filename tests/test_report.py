"""The report: complete, escaped, and without a single request to anywhere."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from deploy.results import Measurement, append_measurements
from scripts.report import main
from tests.test_deploy_bundle import tiny_bundle
from tests.test_deploy_measure import measurement


def variants() -> list[Measurement]:
    found = []
    for m in (measurement("fp32", 9.25), measurement("int8", 2.5, file_bytes=1 << 20)):
        found += [m, replace(m, kind="throughput", latency=None, batch=32, throughput_images_per_s=4321.0)]
    return found


def metrics() -> list[dict[str, Any]]:
    train = [
        {"kind": "train", "step": s, "epoch": 0, "loss": 2.0 - s / 10, "lr": 0.1, "images_per_s": 100.0}
        for s in range(1, 9)
    ]
    return [*train, {"kind": "eval", "step": 8, "epoch": 1, "loss": 1.1, "top1": 0.8125, "top5": 1.0}]


def fill(run: Path, *parts: str) -> Path:
    run.mkdir(parents=True)
    if "results" in parts:
        append_measurements(run / "results.jsonl", variants())
    if "metrics" in parts:
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics()))
    if "bundle" in parts:
        tiny_bundle(run)
    if "config" in parts:
        (run / "config.yaml").write_text("model: {name: resnet18}\ndata: {name: '</pre><b>x'}\n")
    return run


def class_table(num_classes: int, leads: str) -> dict[str, Any]:
    rows = [
        {"name": f"kind {i}", "train": 100 - i, "val": 10, "precision": None if i == 1 else 0.5,
         "recall": 0.5, "f1": (i + 1) / (num_classes + 1), "auc_roc": 0.5, "average_precision": 0.25}
        for i in range(num_classes)
    ]  # fmt: skip
    values = {"loss": 1.0, "top1": 0.875, "top5": 1.0, "macro_f1": 0.3125, "weighted_f1": 0.5}
    values |= {"balanced_accuracy": 0.4375, "auc_roc": 0.5, "average_precision": 0.25}
    return {
        "step": 8, "epoch": 1, "num_images": 20, "headline": leads, "reason": f"{leads} leads for a reason",
        "values": values, "classes": rows, "confusion": [[10] * num_classes] * num_classes,
        "pr_curves": [{"name": "kind 0", "recall": [0, 1], "precision": [1, 0.5]}],
    }  # fmt: skip


def page_of(run: Path) -> str:
    """The page without plotly.js, which is not ours."""
    text = (run / "report.html").read_text()
    assert get_plotlyjs() in text
    return text.replace(get_plotlyjs(), "")


def figures_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fill(tmp_path / "run", "results", "metrics", "bundle", "config")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = page_of(run)
    for figure in ("90.00%", "2.500", "9.250", "4,321", "3.70x", "resnet18, on"):
        assert figure in page
    assert "is not there" not in page
    figures = figures_of(page)
    assert set(figures) == {"trade-off", "histogram", "tail", "loss", "top1", "lr", "speed"}
    assert [t["name"] for t in figures["trade-off"]["data"]] == ["fp32", "int8"]
    assert figures["top1"]["data"][0]["y"] == [81.25]
    for name in figures:
        assert page.count(f'id="{name}"') == 1


def test_it_fetches_nothing(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "results", "metrics", "bundle", "config")
    main([str(run)])
    page = page_of(run)
    assert not re.search(r"""(?:src|href)\s*=|@import|url\(|https?://|//cdn""", page)
    assert "default-src 'none'" in page  # which also holds plotly.js back


def test_everything_is_escaped(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "results", "metrics", "bundle", "config")
    path = run / "bundle" / "bundle.json"
    raw = json.loads(path.read_text())
    evil = "<script>alert(1)</script>"
    raw["input"]["class_names"] = [evil, "fine"]
    raw["name"] = raw["created"] = evil
    raw["commands"] = [evil]
    raw["versions"] = {evil: evil}
    path.write_text(json.dumps(raw))
    results = run / "results.jsonl"
    results.write_text(results.read_text().replace('"variant": "int8"', f'"variant": "{evil}"'))
    main([str(run)])
    page = page_of(run)
    assert evil not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, fine" in page
    assert "</pre><b>" not in page
    assert page.count("<script") == 3
    assert evil in [t["name"] for t in figures_of(page)["trade-off"]["data"]]


def test_a_folder_name_is_escaped(tmp_path: Path) -> None:
    run = fill(tmp_path / "a<b>c", "results")
    main([str(run)])
    assert "<b>" not in page_of(run).split('<script type="application/json"')[0]


@pytest.mark.parametrize("there", ["results", "metrics", "bundle", "config"])
def test_what_is_missing_is_said(tmp_path: Path, there: str) -> None:
    run = fill(tmp_path / "run", there)
    assert main([str(run)]) == 0
    page = page_of(run)
    for part, file in {
        "results": "results.jsonl",
        "metrics": "metrics.jsonl",
        "bundle": "bundle/bundle.json",
        "config": "config.yaml",
    }.items():
        assert (f"{file} is not there" in page) == (part != there)


def test_a_folder_with_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds none of metrics.jsonl, results.jsonl" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_runs_have_a_colour_each(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "a" / "run", "results", "metrics"), fill(tmp_path / "b" / "run", "results")
    assert main([str(one), str(two), "--out", str(tmp_path / "report.html")]) == 0
    points = figures_of(page_of(tmp_path))["trade-off"]["data"]
    assert [p["name"] for p in points] == ["a/run: fp32", "a/run: int8", "b/run: fp32", "b/run: int8"]
    colours = [p["marker"]["color"] for p in points]
    assert colours[0] == colours[1] != colours[2] == colours[3]


def test_a_slow_int8_is_said_in_the_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    append_measurements(run / "results.jsonl", [measurement("fp32", 1.0), measurement("int8", 2.0)])
    main([str(run)])
    page = page_of(run)
    assert "WARNING: int8 is SLOWER than fp32 (0.50x)" in page
    assert "Slow-down" in page


def test_a_run_that_is_still_writing(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "metrics")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "st')
    assert main([str(run)]) == 0


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "metrics")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "step": 9, "epoch": 1, "loss": NaN, "lr": 0.1}\n')
    assert main([str(run)]) == 0
    figures = figures_of(page_of(run))
    assert figures["loss"]["data"][1]["x"][-1] == 8
    assert figures["lr"]["data"][0]["x"][-1] == 9


@pytest.mark.parametrize("bad", ["{\n", "[]\n", '{"kind": "train"}\n', '{"kind": "train", "step": "x"}\n'])
def test_a_broken_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str) -> None:
    run = fill(tmp_path / "run", "metrics")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(bad)
    assert main([str(run)]) == 2
    assert "metrics.jsonl, line 10:" in capsys.readouterr().err


def test_macro_f1_leads_the_page_where_it_leads_the_run(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "results", "metrics")
    for leads in ("macro_f1", "top1"):
        (run / "classes.json").write_text(json.dumps(class_table(3, leads)))
        assert main([str(run)]) == 0
        page = page_of(run)
        cards = re.findall(r'<div class="label">(.*?)</div><div class="value ">(.*?)<', page)
        assert (cards[0] == ("Macro F1", "31.25")) == (leads == "macro_f1")
        assert (cards[0][0] == "Top-1, int8") == (leads == "top1")
        assert f"{leads.capitalize()} leads for a reason" in page
        assert {"pr-0", "confusion-0", "frequencies-0"} <= set(figures_of(page))


def test_the_worst_classes_come_first_and_most_are_left_to_the_file(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "metrics")
    table = class_table(40, "top1")
    table["classes"].reverse()
    (run / "classes.json").write_text(json.dumps(table))
    assert main([str(run)]) == 0
    page = page_of(run)
    found = re.findall(r"<tr><td>kind (\d+)</td>", page)
    assert found == [str(i) for i in (*range(15), *range(35, 40))]
    assert "The 15 worst and the 5 best of 40 classes" in page
    assert re.search(r"<td>kind 1</td><td>99</td><td>10</td><td>-</td><td>50.0%</td>", page)


def test_a_cross_validations_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top1 = {"mean": 0.75, "std": 0.125, "values": [0.625, 0.875]}
    evil = "<script>x"
    unknown = {"mean": None, "std": None, "values": [None, 0.5]}
    cv = {"folds": 2, "metrics": {"top1": top1, "auc_roc": unknown},
          "confusion": [[3, 1], [0, 4]], "class_names": ["a", evil]}  # fmt: skip
    (tmp_path / "cv.json").write_text(json.dumps(cv))
    assert main([str(tmp_path)]) == 0
    page = page_of(tmp_path)
    assert "<td>top-1</td><td>75.0%</td><td>12.5%</td><td>62.5%, 87.5%</td>" in page
    assert "<td>AUC-ROC</td><td>-</td><td>-</td><td>-, 50.0%</td>" in page
    assert figures_of(page)["cv-confusion-0"]["data"][0]["z"] == [[0.75, 0.25], [0.0, 1.0]]
    assert evil not in page
    assert "is not there" not in page
    (tmp_path / "cv.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert "cv.json cannot be read" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here to open the page with")
def test_a_browser_draws_every_plot(tmp_path: Path) -> None:
    run = fill(tmp_path / "run", "results", "metrics", "bundle", "config")
    (run / "classes.json").write_text(json.dumps(class_table(3, "macro_f1")))
    assert main([str(run)]) == 0
    browser = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom",
        (run / "report.html").as_uri(),
    ]  # fmt: skip
    drawn = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True).stdout
    wanted = set(figures_of(page_of(run)))
    assert {"trade-off", "histogram", "tail", "confusion-0"} <= wanted
    assert set(re.findall(r'<div class="plot js-plotly-plot" id="([^"]+)"', drawn)) == wanted
