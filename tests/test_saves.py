"""Saves that are torn, sharded, or of another strategy, and runs that end before their time."""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from tests.processes import python, torchrun
from train.checkpoint import UnreadableError, load_checkpoint
from train.class_metrics import class_metrics
from train.metrics import EvalResult
from train.monitor import Monitor
from train.run import run
from train.saves import checkpoints
from train.sharded import read_sharded

# 16 images of 32 px in batches of 4: 4 steps an epoch, a checkpoint after every second one.
TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=16", "data.num_val=6",
    "data.width=40", "data.height=36", "data.input.size=32", "data.input.resize=32",
    "model=mobilenet_v2", "model.stem=small", "model.dropout=0.3",
    "mixup=0.2", "cutmix=1.0", "ema_decay=0.9",
    "clip_grad_norm=1.0", "optim.l1=0.0001", "optim.lr=0.01", "batch_size=4", "epochs=2",
    "log_every=1", "checkpoint_every=2",
    "precision=fp32", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    return [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]


def overrides(images: list[str], run_dir: Path, *more: str) -> list[str]:
    return [*TINY, *images, f"run_dir={run_dir}", *more]


def train(images: list[str], run_dir: Path, *more: str) -> dict[str, float]:
    return run(load("train", TrainConfig, overrides(images, run_dir, *more)))


def tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    saved = load_checkpoint(run_dir / "checkpoint.pt")
    parts: dict[str, Any] = {"model": saved.model, "ema": saved.ema, "optimizer": saved.optimizer}
    return {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}


def assert_same(one: Path, other: Path) -> None:
    expected, got = tensors(one), tensors(other)
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def log_of(run_dir: Path, rank: int = 0) -> str:
    return (run_dir / "logs" / f"rank{rank}.log").read_text()


@pytest.fixture(scope="module")
def whole(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(images, run_dir)
    return run_dir


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    """Half way: in a tensor, which torch.load takes as it is."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit])
def test_a_torn_checkpoint_falls_back_to_the_one_before(
    spoil: Callable[[Path], None], images: list[str], whole: Path, tmp_path: Path
) -> None:
    train(images, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "previous.pt").progress.step == 6
    spoil(tmp_path / "run" / "checkpoint.pt")
    train(images, tmp_path / "run", "resume=true")
    assert "checkpoint.pt (" in log_of(tmp_path / "run")
    assert "falling back to the one before" in log_of(tmp_path / "run")
    assert_same(whole, tmp_path / "run")


def test_with_nothing_left_to_fall_back_to_it_is_an_error(images: list[str], tmp_path: Path) -> None:
    train(images, tmp_path / "run", "epochs=1", "optim.warmup_epochs=0")
    for name in ("checkpoint.pt", "previous.pt"):
        truncate(tmp_path / "run" / name)
    with pytest.raises(LabError, match="truncated"):
        train(images, tmp_path / "run", "resume=true", "epochs=1", "optim.warmup_epochs=0")


KILLER = """
import os, signal, sys
import train.run as story
from configs.load import load
from configs.schema import TrainConfig
step = int(sys.argv[1])
record = story.Monitor.train
def record_and_die(self, at, epoch, values):
    record(self, at, epoch, values)
    if at == step:
        os.kill(os.getpid(), signal.SIGKILL)
story.Monitor.train = record_and_die
story.run(load("train", TrainConfig, sys.argv[2:]))
"""


def test_a_sharded_run_is_exported_and_goes_on_alone(images: list[str], tmp_path: Path) -> None:
    done = torchrun(2, "-m", "train", *overrides(images, tmp_path / "run", "strategy=fsdp"))
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "run"
    folders = [path for path in checkpoints(run_dir) if path.is_dir()]
    assert [path.name for path in folders[:2]] == ["step-00000008", "step-00000006"]
    exported, sharded = load_checkpoint(run_dir / "checkpoint.pt"), read_sharded(folders[0])
    for part in ("model", "ema", "optimizer"):
        one, other = getattr(exported, part), getattr(sharded, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    flip_a_bit(next(folders[1].glob("__0_*.distcp")))
    with pytest.raises(UnreadableError, match="CRC"):
        read_sharded(folders[1])
    flip_a_bit(next(folders[1].glob("__0_*.distcp")))
    # Of the last sharded checkpoint that is whole, by one process that is not sharded.
    (run_dir / "checkpoint.pt").unlink()
    truncate(next(folders[0].glob("__0_*.distcp")))
    train(images, run_dir, "resume=true", "strategy=single")
    assert "step-00000008 cannot be read" in log_of(run_dir)
    assert "at step 6" in log_of(run_dir)
    assert load_checkpoint(run_dir / "checkpoint.pt").progress.step == 8


@pytest.mark.slow
def test_a_killed_sharded_run_continues_bit_for_bit(images: list[str], tmp_path: Path) -> None:
    done = torchrun(2, "-m", "train", *overrides(images, tmp_path / "whole", "strategy=fsdp"))
    assert done.returncode == 0, done.stderr
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    arguments = overrides(images, tmp_path / "run", "strategy=fsdp")
    assert torchrun(2, str(script), "5", *arguments).returncode != 0
    done = torchrun(2, "-m", "train", *arguments, "resume=true")
    assert done.returncode == 0, done.stderr
    assert "at step 4" in log_of(tmp_path / "run") or "at step 2" in log_of(tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_an_evaluation_that_is_done_again_is_recorded_once(tmp_path: Path) -> None:
    confusion = torch.eye(2, dtype=torch.int64)
    result = EvalResult(1.0, 0.5, 0.9, 4, confusion, class_metrics(confusion.numpy(), None), None)
    for evaluated in (True, False):  # the second life goes on from a save made while step 4 was evaluated
        monitor = Monitor(tmp_path, 4, evaluated=evaluated, enabled=True)
        if evaluated:
            monitor.train(4, 1, {"loss": 2.0})
        monitor.eval(4, 1, result, ("a", "b"))
        monitor.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", 4), ("eval", 4)]
    (file,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    for tag in ("train/loss", "eval/loss"):
        assert [event.step for event in events.Scalars(tag)] == [4]
    assert [event.step for event in events.Images("eval/confusion")] == [4]


@pytest.mark.slow
def test_a_sharded_run_that_is_stopped_has_saved_where_it_says(images: list[str], tmp_path: Path) -> None:
    script = tmp_path / "stopped.py"
    script.write_text(STOP)
    torchrun(2, str(script), *overrides(images, tmp_path / "run", "strategy=fsdp"))
    newest = checkpoints(tmp_path / "run")[0]
    assert newest.name == "step-00000004"
    assert "saved at step 4" in log_of(tmp_path / "run")


STOP = """
import os, signal, sys
import train.run as story
from configs.load import load
from configs.schema import TrainConfig
record = story.Monitor.train
def record_and_stop(self, step, epoch, values):
    record(self, step, epoch, values)
    if step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
story.Monitor.train = record_and_stop
story.run(load("train", TrainConfig, sys.argv[1:]))
"""


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_opening_a_sharded_checkpoint_runs_no_code(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "run.pt").write_bytes((whole / "checkpoint.pt").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnreadableError, match="no place in a checkpoint"):
        read_sharded(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_run_ends_early_when_its_score_stands_still(images: list[str], tmp_path: Path) -> None:
    # With hardly any learning rate and a rise of 100 points asked for, the first epoch stays the best.
    slow = ("early_stop.patience=2", "early_stop.min_delta=1.0", "epochs=9", "optim.lr=1e-9")
    train(images, tmp_path / "run", *slow)
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert (saved.progress.epoch, saved.progress.best_epoch) == (3, 1)
    assert "stopped early" in log_of(tmp_path / "run")


def test_cycles_leave_snapshots(images: list[str], tmp_path: Path) -> None:
    train(images, tmp_path / "run", "optim.cycles=2", "optim.warmup_epochs=0")
    epochs = [load_checkpoint(tmp_path / "run" / f"snapshot-{n}.pt").progress.epoch for n in (1, 2)]
    assert epochs == [1, 2]


POISON = """
import sys
import train.loop as loop
import train.run as story
from configs.load import load
from configs.schema import TrainConfig
bad = [int(step) for step in sys.argv[1].split(",")]
draws_for = loop.draws_for
def remember(seed, step, part, replica):
    loop.now = step + 1
    return draws_for(seed, step, part, replica)
loop.draws_for = remember
make = story.classification
def poisoned(*arguments):
    task = make(*arguments)
    def fails(batch, draws):
        images, criterion = task(batch, draws)
        return (images * float("nan") if loop.now in bad else images), criterion
    return fails
story.classification = poisoned
try:
    story.run(load("train", TrainConfig, sys.argv[2:]))
except story.LabError as error:
    print("error:", error)
"""


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_images(
    images: list[str], tmp_path: Path
) -> None:
    done = python("-c", POISON, "3", *overrides(images, tmp_path / "run", "log_every=4"))
    assert "the loss is nan at step 3" in done.stdout, done.stderr
    record = json.loads((tmp_path / "run" / "nan" / "step-00000003.json").read_text())
    assert record["step"] == 3
    assert len(record["images"]) == 4
    assert all(Path(path).is_file() for path in record["images"])


def test_a_loss_between_two_records_does_not_get_into_a_checkpoint(images: list[str], tmp_path: Path) -> None:
    done = python("-c", POISON, "1", *overrides(images, tmp_path / "run", "log_every=4"))
    assert "the loss is nan at step 1" in done.stdout, done.stderr
    assert checkpoints(tmp_path / "run") == []


def test_steps_without_a_finite_loss_are_left_out_up_to_a_limit(images: list[str], tmp_path: Path) -> None:
    arguments = overrides(images, tmp_path / "run", "on_nan=skip", "max_nan_steps=2")
    done = python("-c", POISON, "3,5", *arguments)
    assert done.stdout == "", done.stdout
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved.progress.nan_steps == 2
    assert all(bool(value.isfinite().all()) for value in tensors(tmp_path / "run").values())
    assert math.isfinite(saved.metrics["loss"])
    done = python("-c", POISON, "2,3,5", *overrides(images, tmp_path / "b", *arguments[-2:]))
    assert "3 steps without a finite loss, max_nan_steps=2" in done.stdout


HANG = """
import os, sys, threading
import train.run as story
from configs.load import load
from configs.schema import TrainConfig
if os.environ["RANK"] == "1":
    record = story.Monitor.train
    def hang(self, step, epoch, values):
        if step == 2:
            threading.Event().wait()
    story.Monitor.train = hang
story.run(load("train", TrainConfig, sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_rank_that_hangs_ends_all_and_leaves_every_stack(images: list[str], tmp_path: Path) -> None:
    script = tmp_path / "hang.py"
    script.write_text(HANG)
    done = torchrun(
        2, str(script), *overrides(images, tmp_path / "run", "strategy.timeout_s=15"), timeout=120
    )
    assert done.returncode not in (0, -signal.SIGKILL)
    assert "its stacks are in" in done.stderr
    logs = [log_of(tmp_path / "run", rank) for rank in (0, 1)]
    assert all("the stacks of all threads" in log and "train_epoch" in log for log in logs)
    assert "in hang" in logs[1]


def test_the_epochs_to_keep_stay_beside_the_latest(images: list[str], whole: Path, tmp_path: Path) -> None:
    train(images, tmp_path / "run", "keep_epochs=[1]")
    assert load_checkpoint(tmp_path / "run" / "epoch-1.pt").progress.epoch == 1
    assert_same(whole, tmp_path / "run")


def test_an_epoch_that_never_comes_cannot_be_kept() -> None:
    with pytest.raises(LabError, match=r"keep_epochs \[3\] must be at most epochs 2"):
        load("train", TrainConfig, [*TINY, "keep_epochs=[1,3]"])
