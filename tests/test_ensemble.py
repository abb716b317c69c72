"""Several checkpoints as one network: what their mean is worth, and which may not be averaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from scripts.ensemble import main
from tests.test_saves import train
from train.checkpoint import load_checkpoint
from train.ensemble import ScoreCounts, mean_log_probabilities


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def runs(files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks of different kinds, on the same images."""
    folder = tmp_path_factory.mktemp("runs")
    train(files, folder / "a", "optim.cycles=2", "optim.warmup_epochs=0.0")
    train(files, folder / "b", "model=resnet18", "model.stem=small", "sampling=bootstrap", "seed=1",
          "epochs=1", "optim.warmup_epochs=0.0")  # fmt: skip
    return folder


def paths(runs: Path) -> list[str]:
    return [str(runs / name) for name in ("a/checkpoint.pt", "a/snapshot-1.pt", "b/checkpoint.pt")]


def test_members_score_as_in_training_and_their_mean_no_worse_than_them(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ensemble.json"
    assert main([*paths(runs), "--out", str(out), "--device", "cpu"]) == 0
    found = json.loads(out.read_text())
    table = capsys.readouterr().out
    assert "snapshot-1.pt" in table
    assert found["num_images"] == 6
    for path, member in zip(paths(runs), found["members"], strict=True):
        metrics = load_checkpoint(Path(path)).metrics
        assert member["checkpoint"] == path
        assert member["top1"] == pytest.approx(metrics["top1"])
        assert member["nll"] == pytest.approx(metrics["loss"], rel=1e-4)
    # Jensen's inequality: the mean of probabilities is never less likely than the members are in the mean.
    assert found["ensemble"]["nll"] <= sum(m["nll"] for m in found["members"]) / 3 + 1e-6
    assert found["ensemble"]["nll"] not in [m["nll"] for m in found["members"]]
    assert 0 <= found["disagreement"] <= 1


def test_a_copy_of_a_network_changes_nothing(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "ensemble.json"
    assert main([paths(runs)[0], paths(runs)[0], "--out", str(out), "--device", "cpu"]) == 0
    found = json.loads(out.read_text())
    assert found["ensemble"]["nll"] == pytest.approx(found["members"][0]["nll"], rel=1e-5)
    assert found["disagreement"] == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.num_classes=3"], "class_names"),
        (["data.input.size=64", "data.input.resize=64"], "size: 64 there, 32 here"),
    ],
)
def test_other_classes_and_sizes_are_refused(
    files: list[str],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    said: str,
) -> None:
    train(files, tmp_path / "other", "epochs=1", "optim.warmup_epochs=0.0", *more)
    assert main([paths(runs)[0], str(tmp_path / "other" / "checkpoint.pt")]) == 2
    assert said in capsys.readouterr().err
    assert not (runs / "a" / "ensemble.json").exists()


def test_a_member_that_knows_the_validation_images_is_refused(
    files: list[str],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(files, tmp_path / "fold", "epochs=1", "optim.warmup_epochs=0.0", "cv.folds=2", "cv.fold=0")
    assert main([paths(runs)[0], str(tmp_path / "fold" / "checkpoint.pt")]) == 2
    assert "of the 6 validation images" in capsys.readouterr().err


def test_one_or_none_is_no_ensemble(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([paths(runs)[0]]) == 2
    assert main([paths(runs)[0], str(runs / "no.pt")]) == 2
    told = capsys.readouterr().err
    assert "two or more" in told
    assert "no checkpoint" in told


def test_scores_are_their_formulas() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0], [0.9, 0.1, 0], [0.3, 0.7, 0], [0.25, 0.35, 0.4]]).clamp(
        1e-30
    )
    counts = ScoreCounts(3, torch.device("cpu"))
    for rows in (slice(0, 3), slice(3, 4)):
        counts.add(probabilities[rows].log(), torch.tensor([0, 1, 1, -1])[rows])
    found = counts.result()
    assert found.top1 == pytest.approx(2 / 3)
    # Of the classes: F1 2/3, 2/3, and 0 for the one that is neither there nor named.
    assert found.macro_f1 == pytest.approx(4 / 9)
    assert found.nll == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.7)) / 3, rel=1e-6)
    # One bin holds confidence 0.9 twice with accuracy one half, one holds 0.7 with accuracy 1.
    assert found.ece == pytest.approx((2 * 0.4 + 0.3) / 3)


def test_the_mean_is_of_probabilities() -> None:
    members = torch.tensor([[[0.8, 0.2]], [[0.2, 0.8]], [[0.8, 0.2]]]).log()
    torch.testing.assert_close(mean_log_probabilities(members).exp(), torch.tensor([[0.6, 0.4]]))
