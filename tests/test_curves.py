"""The range test's and the learning curve's arithmetic, and each command on tiny images."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.load import load
from configs.schema import TrainConfig
from scripts.find_lr import main as find_lr
from scripts.learning_curve import main as learning_curve
from scripts.learning_curve import make_jobs
from scripts.report_diagnosis import heat_map, read_diagnoses, section
from tests.test_train_run import TINY, train
from train.learning_curve import Point, longer, point, verdict
from train.lr_range import HIGHEST, LOWEST, curve, rates, suggest


def test_the_steepest_descent_and_the_divergence() -> None:
    lrs = rates(20)
    assert [lrs[0], lrs[-1]] == pytest.approx([LOWEST, HIGHEST])
    losses = [2.0] * 8 + [1.9, 1.5, 1.0, 0.9, 0.9, 1.0, 2.0, 9.0]  # 20 steps are not smoothed
    found = curve(lrs[: len(losses)], losses, 20)
    assert found.smoothed == pytest.approx(losses)
    assert found.diverged == lrs[15]
    advice = suggest(found)
    assert advice.steepest == lrs[9]
    assert advice.tenth == pytest.approx(lrs[15] / 10)


def test_a_loss_that_is_not_finite_has_diverged() -> None:
    found = curve(rates(20)[:3], [2.0, 1.0, float("nan")], 20)
    assert found.diverged == rates(20)[2]
    assert found.smoothed == pytest.approx([2.0, 1.0])


def test_a_loss_that_never_falls_suggests_nothing() -> None:
    found = curve(rates(20), [2.0] * 20, 20)
    assert suggest(found).steepest is None
    assert suggest(found).tenth is None


def test_noise_is_averaged_over_a_twentieth() -> None:
    losses = [1.0 + (-1) ** step * 0.5 for step in range(100)]
    smoothed = curve(rates(100), losses, 100).smoothed
    assert max(abs(value - 1) for value in smoothed[20:]) < 0.1


def at(num_images: int, train_error: float, val_error: float) -> Point:
    return Point(num_images / 1000, num_images, train_error, val_error, 0.0, 0.0)


@pytest.mark.parametrize(
    ("points", "target", "name", "closes"),
    [
        ([at(100, 0.28, 0.40), at(1000, 0.30, 0.32)], 0.0, "high bias", True),
        ([at(100, 0.0, 0.40), at(1000, 0.01, 0.20)], 0.0, "high variance", True),
        ([at(100, 0.0, 0.21), at(1000, 0.01, 0.20)], 0.0, "high variance", False),
        ([at(100, 0.0, 0.3), at(1000, 0.001, 0.004)], 0.0, "neither", True),
        ([at(1000, 0.20, 0.30)], 0.0, "high bias", False),
        ([at(1000, 0.20, 0.30)], 0.15, "high variance", False),
    ],
)
def test_the_verdict(points: list[Point], target: float, name: str, closes: bool) -> None:
    said = verdict(points, 1000, target)
    assert (said.name, said.closes) == (name, closes)
    assert said.words.startswith(name)


def test_a_point_is_of_its_seeds() -> None:
    found = point(0.5, 50, [0.1, 0.3], [0.4])
    values = [found.train_error, found.val_error, found.train_std, found.val_std]
    assert values == pytest.approx([0.2, 0.4, 0.02**0.5, 0.0])


def test_shares_make_as_many_steps() -> None:
    words = [
        "epochs=12",
        "optim.warmup_epochs=2.0",
        "optim.cycles=3",
        "data.input.progressive={start_size: 32, epochs: 4}",
    ]
    jobs = make_jobs([*words, "seed=9"], [0.25, 1.0], [0, 1])
    config = jobs[0].config
    assert (config.train_fraction, config.epochs, config.seed) == (0.25, 48, 0)
    assert (config.optim.warmup_epochs, config.data.input.progressive.epochs) == (8.0, 16)
    assert len({job.name for job in jobs}) == 4
    assert longer(config, 1.0).epochs == 48  # as many as the config itself says


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]


def test_a_range_test_on_images(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    code = find_lr([*TINY, *data, f"run_dir={run}", "accumulate=1", "--steps", "24"])
    told = capsys.readouterr()
    assert code == 0, told.err
    found = json.loads((run / "find_lr.json").read_text())
    assert 2 < len(found["losses"]) <= 24
    assert found["lrs"][0] == pytest.approx(LOWEST)
    assert (run / "find_lr.svg").read_text().count("<svg") == 1
    assert "optim.lr" in told.out or "never falls" in told.out
    assert find_lr(["--steps", "3"]) == 2


def test_a_fraction_trains_on_that_share(data: list[str], tmp_path: Path) -> None:
    train(data, tmp_path / "run", "train_fraction=0.5", "epochs=1", "optim.warmup_epochs=0")
    assert "12 of 24 training images" in (tmp_path / "run" / "logs" / "rank0.log").read_text()


@pytest.mark.slow
def test_a_learning_curve_goes_on(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY, *data, f"run_dir={tmp_path / 'curve'}", "optim.warmup_epochs=0", "epochs=1"]
    assert learning_curve([*words, "--fractions", "0.5,1"]) == 0, capsys.readouterr().err
    first = json.loads((tmp_path / "curve" / "learning_curve.json").read_text())
    assert [p["num_images"] for p in first["points"]] == [12, 24]
    assert learning_curve([*words, "resume=true", "--fractions", "0.5,1"]) == 0
    assert "2 done already" in capsys.readouterr().err
    assert json.loads((tmp_path / "curve" / "learning_curve.json").read_text()) == first
    assert (tmp_path / "curve" / "learning_curve.svg").exists()


def test_the_report_draws_the_norms(tmp_path: Path) -> None:
    line = {"step": 1, "epoch": 1, "layers": {"<a>": {"grad_norm": 0.01}, "b": {"grad_norm": None}}}
    found = ["vanishing gradient in <a> (norm 0.01)"]
    (tmp_path / "diagnosis.jsonl").write_text(json.dumps({**line, "findings": found}) + '\n{"torn')
    looked = read_diagnoses(["run"], [tmp_path])
    ((name, (_, lines)),) = looked.items()
    figure = heat_map(lines)
    assert figure is not None
    assert figure["data"][0]["z"] == [[-2.0], [None]]
    page = section(looked)
    assert f'id="{name}"' in page
    assert "vanishing gradient in &lt;a&gt;, first at step 1" in page
    assert read_diagnoses(["run"], [tmp_path / "other"]) == {}


def wandb_records(content: bytes) -> Iterator[bytes]:
    """Of a .wandb file: LevelDB's log format, in blocks of 32 KiB, the first with 7 bytes of W&B's own."""
    position, whole = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768  # filled up with zeros
            continue
        size, kind = struct.unpack_from("<HB", content, position + 4)
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield whole
            whole = b""


@pytest.mark.slow
def test_wandb_offline_is_one_run(data: list[str], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2 as proto

    words = ["wandb.project=tiny", "wandb.mode=offline", "optim.warmup_epochs=0"]
    for more in (["epochs=1"], ["epochs=1", "resume=true"]):
        train(data, tmp_path / "run", *words, *more)
    steps: dict[str, list[int]] = {}
    ids = set()
    for file in sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for raw in wandb_records(file.read_bytes()):
            record = proto.Record()  # type: ignore[attr-defined]
            record.ParseFromString(raw)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                steps.setdefault(key, []).append(record.history.step.num)
    assert ids == {(tmp_path / "run" / "wandb.id").read_text()}
    assert steps["train/loss"] == [2, 4, 6]
    assert steps["eval/top1"] == [6]


def test_wandb_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from deploy.errors import LabError
    from train.wandb_log import require_wandb

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(LabError, match="pip install wandb"):
        require_wandb(load("train", TrainConfig, ["wandb.project=x"]).wandb)
    require_wandb(load("train", TrainConfig).wandb)


def test_compiled_layers_are_not_looked_into() -> None:
    with pytest.raises(Exception, match=r"diagnose\.every needs compile=false"):
        load("train", TrainConfig, ["compile=true", "diagnose.every=1"])
