"""Chains beside each other: what the table says of several checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from optimize.chain import RECORD
from optimize.stage import StageRecord
from scripts.compare_chains import (
    Chain,
    Outcome,
    control_of,
    folder_name,
    format_outcomes,
    main,
    parse_chain,
    stored_bytes,
)
from tests.test_chain import TINY
from train.run import run


def test_a_chain_has_a_name_and_overrides() -> None:
    parsed = parse_chain("two rounds: stages=[prune] 'prune.finetune=${finetune}'")
    assert parsed == Chain("two rounds", ("stages=[prune]", "prune.finetune=${finetune}"))
    assert folder_name(Chain("max, 10 images (control)", ())) == "max-10-images-control"
    for text in ("stages=[prune]", ": stages=[prune]"):
        with pytest.raises(LabError, match='give "NAME: KEY=VALUE'):
            parse_chain(text)


def test_the_table_has_mean_deviation_and_median() -> None:
    found = [
        Outcome(0.90, 1.0, 0.5, 0.25, 0.5),
        Outcome(0.92, -1.0, 0.5, 0.25, 0.9),
        Outcome(0.94, 0.0, 0.5, 0.25, 0.6),
    ]
    lines = format_outcomes([0.91, 0.91, 0.94], {"taylor": found}).splitlines()
    assert lines[0] == "| chain | top-1, % (3 checkpoints) | points | MACs | size | latency |"
    assert lines[2] == "| as it was | 92.00 \u00b1 1.73 | | | | |"
    assert lines[3] == "| taylor | 92.00 \u00b1 2.00 | +0.00 \u00b1 1.00 | 0.50 | 0.250 | 0.60 |"
    alone = format_outcomes([0.91], {"taylor": [Outcome(0.90, 1.0, 0.5, 0.25, None)]}).splitlines()
    assert alone[3] == "| taylor | 90.00 | -1.00 | 0.50 | 0.250 |  |"
    mixed = {"max": [Outcome(0.90, 1.0, 1.0, 0.25, 0.5, 31.84)], "half": [Outcome(0.90, 1.0, 0.5, 0.5, 0.5)]}
    lines = format_outcomes([0.91], mixed).splitlines()
    assert lines[0].endswith("| latency | logits, dB |")
    assert len({line.count("|") for line in lines}) == 1
    assert lines[3].endswith("| 31.8 |")


def test_a_mistake_is_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoints", "none.pt", "--out", str(tmp_path / "out")]
    assert main([*arguments, "a: stages=[prune] prune.kepe=0.5"]) == 2
    assert "did you mean keep?" in capsys.readouterr().err
    assert main([*arguments, "a: stages=[prune]"]) == 2
    assert "no checkpoint none.pt" in capsys.readouterr().err
    assert main([*arguments, "a, b: stages=[prune]", "a (b): stages=[prune]"]) == 2
    assert "two chains have one name" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("**/chain.log"))


@pytest.mark.slow
def test_chains_run_on_every_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    checkpoints = []
    for seed in (0, 1):
        run(load("train", TrainConfig, [*TINY, *files, f"seed={seed}", f"run_dir={tmp_path / str(seed)}"]))
        checkpoints.append(str(tmp_path / str(seed) / "checkpoint.pt"))
    out = tmp_path / "a, b"
    arguments = ["--checkpoints", *checkpoints, "--out", str(out), "--seconds", "0.05", "--slots", "2"]
    assert main([*arguments, "l1 (2): stages=[prune] prune.importance=l1"]) == 0
    table = (out / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| as it was", "| l1 (2)"]
    assert table.count("\u00b1") == 3
    # What is done stays, and what fails is named.
    chains = ["l1 (2): stages=[prune] prune.importance=l1", "bad: stages=[prune] prune.keep=0.001"]
    assert main([*arguments[:2], *arguments[3:], *chains]) == 1
    assert "exit code 2, see" in capsys.readouterr().err


def record(folder: Path, stage: str, top1: float, found: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    written = StageRecord(stage, {}, "", 10, 20, 1000, top1, 100, 0.0, None, None, found)
    (folder / RECORD).write_text(json.dumps(asdict(written)))


def test_a_tickets_control_is_a_line_of_its_own(tmp_path: Path) -> None:
    record(tmp_path / "0-original", "original", 0.9, {})
    record(tmp_path / "1-lottery", "lottery", 0.88, {"control_top1": 0.8})
    control = control_of(tmp_path)
    assert control is not None
    assert (control.top1, control.macs) == (0.8, 1.0)
    assert control.drop == pytest.approx(10.0)
    record(tmp_path / "2-finetune", "finetune", 0.89, {})
    assert control_of(tmp_path) is None


def test_shared_weights_are_stored_in_their_own_file(tmp_path: Path) -> None:
    record(tmp_path / "1", "finetune", 0.9, {"shared_weights": {"file_bytes": 130}})
    found = StageRecord.read(tmp_path / "1" / RECORD)
    assert found is not None
    assert stored_bytes(found) == 130
