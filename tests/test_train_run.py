"""Whole runs, as users start them: killed, stopped, shared among ranks, told the wrong thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.load import load
from configs.schema import TrainConfig
from data.build import build_loader
from data.plan import EvalPlan
from data.prepare import Splits
from deploy.errors import LabError
from tests.processes import ROOT, environment, python, torchrun
from train.checkpoint import Checkpoint, load_checkpoint, restore_model
from train.group import is_lost_rank, lost_rank
from train.metrics import EvalCounts
from train.run import run

# 24 images of 32 px in batches of 4 over two backward passes: 6 steps an epoch, all that draws turned on.
TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=24", "data.num_val=7",
    "data.width=48", "data.height=40", "data.input.size=32", "data.input.resize=36",
    "model=mobilenet_v2", "model.dropout=0.3", "mixup=0.2", "ema_decay=0.9", "clip_grad_norm=1.0",
    "batch_size=4", "accumulate=2", "epochs=2", "log_every=2", "checkpoint_every=4", "optim.lr=0.01",
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


def states(run_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the checkpoint by name."""
    found: dict[str, torch.Tensor] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name}.{key}", inner)

    saved = load_checkpoint(run_dir / "checkpoint.pt")
    for name in ("model", "ema", "optimizer"):
        walk(name, getattr(saved, name))
    return found


def records(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    unsteady = ("images_per_s", "data_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in unsteady} for line in lines]


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    (file,) = (run_dir / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def assert_same_run(one: Path, other: Path) -> None:
    expected, got = states(one), states(other)
    assert expected.keys() == got.keys()
    assert [key for key in expected if not torch.equal(expected[key], got[key])] == []
    assert records(one) == records(other)
    assert scalars(one, "train/loss") == scalars(other, "train/loss")


KILLER = """
import os, signal, sys
import train.run as story
import train.saves as saves
from configs.load import load
from configs.schema import TrainConfig
save = saves.save_checkpoint
def save_and_die(path, checkpoint, previous):
    save(path, checkpoint, previous)
    if checkpoint.progress.step == 4 and path.name == "checkpoint.pt":
        # Some more steps than the checkpoint holds have been recorded when the end comes.
        os.environ["DIE"] = "1"
saves.save_checkpoint = save_and_die
record = story.Monitor.train
def record_and_die(self, step, epoch, values):
    record(self, step, epoch, values)
    if "DIE" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
story.Monitor.train = record_and_die
story.run(load("train", TrainConfig, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def uninterrupted(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    train(images, run_dir)
    return run_dir


def test_a_killed_run_continues_bit_for_bit(images: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    killed = python("-c", KILLER, *overrides(images, tmp_path / "run"))
    assert killed.returncode == -9, killed.stderr
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").progress.step == 4
    assert records(tmp_path / "run")[-1]["step"] == 6
    train(images, tmp_path / "run", "resume=true")
    assert_same_run(uninterrupted, tmp_path / "run")


def test_torchs_loader_continues_bit_for_bit(images: list[str], tmp_path: Path) -> None:
    train(images, tmp_path / "whole", "loader=torch")
    killed = python("-c", KILLER, *overrides(images, tmp_path / "run", "loader=torch"))
    assert killed.returncode == -9, killed.stderr
    train(images, tmp_path / "run", "loader=torch", "resume=true")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_seed_decides_the_run(images: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    train(images, tmp_path / "again")
    assert_same_run(uninterrupted, tmp_path / "again")
    train(images, tmp_path / "other", "seed=1")
    assert records(uninterrupted) != records(tmp_path / "other")


def test_sigterm_saves_and_exits_with_0(images: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", *overrides(images, tmp_path / "run", "epochs=1000")]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 1 of 1000" in line:
            process.terminate()
            break
    rest = process.stderr.read()
    assert process.wait(60) == 0, rest
    assert "stopped as asked" in rest
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert 6 <= saved.progress.step < 6000
    assert saved.loader["position"] == 2 * saved.progress.step


def test_two_ranks_make_one_run(images: list[str], tmp_path: Path) -> None:
    arguments = [item for item in overrides(images, tmp_path) if not item.startswith("run_dir")]
    done = torchrun(2, "-m", "train", *arguments, "accumulate=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert sorted(file.name for file in (run_dir / "logs").iterdir()) == ["rank0.log", "rank1.log"]
    assert [step for step, _ in scalars(run_dir, "eval/top1")] == [6, 12]
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    saved = load_checkpoint(run_dir / "checkpoint.pt")
    alone = evaluated_alone(saved, run_dir)
    assert alone == pytest.approx({name: saved.metrics[name] for name in alone}, rel=1e-5)
    # Alone it goes on from the same place, with the same images in a step.
    train(images, run_dir, "accumulate=1", "epochs=2", "resume=true")
    with pytest.raises(LabError, match="batch_size"):
        train(images, run_dir, "accumulate=1", "resume=true", "batch_size=6")


def evaluated_alone(saved: Checkpoint, run_dir: Path) -> dict[str, float]:
    """Metrics of a checkpoint's weights on the images of its run, in one process and one batch."""
    val = Splits.load(run_dir / "data").val
    plan = EvalPlan(val, saved.input_spec, batch_size=len(val), rank=0, world=1)
    (batch,) = build_loader(saved.config.loader, plan, saved.input_spec, torch.device("cpu"))
    counts = EvalCounts(saved.input_spec.num_classes, torch.device("cpu"))
    with torch.inference_mode():
        counts.add(restore_model(saved)(batch.images), batch.labels)
    result = counts.result()
    assert result.num_images == len(val)
    return result.values


RAISER = """
import os, sys
import train.run as story
from configs.load import load
from configs.schema import TrainConfig
rank = os.environ["RANK"]
record = story.Monitor.train
def record_and_fail(self, step, epoch, values):
    if rank == "1" and step == 6:
        raise RuntimeError('rank 1 is broken')
    record(self, step, epoch, values)
story.Monitor.train = record_and_fail
story.run(load("train", TrainConfig, sys.argv[1:]))
"""


def test_a_rank_that_raises_ends_all(images: list[str], tmp_path: Path) -> None:
    script = tmp_path / "raiser.py"
    script.write_text(RAISER)
    done = torchrun(
        2, str(script), *overrides(images, tmp_path / "run", "accumulate=1", "epochs=1000"), timeout=60
    )
    assert done.returncode != 0
    assert "rank 1 is broken" in (tmp_path / "run" / "logs" / "rank1.log").read_text()
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt").progress.step == 4


class TheirError(RuntimeError):
    """Such as Horovod's, which its elastic mode goes on after."""


def test_a_rank_that_lost_another_is_told_from_one_with_a_defect() -> None:
    gloo = "[/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1160. This is typically"
    assert is_lost_rank(RuntimeError(gloo))
    assert not is_lost_rank(TheirError(gloo))
    assert not is_lost_rank(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    said = str(lost_rank(RuntimeError(gloo), Path("runs/a")))
    assert said.startswith("another rank has ended (Connection closed by peer): ")
    assert "runs/a/logs" in said
    assert "resume=true run_dir=runs/a" in said


HANG = """
import ctypes, os, signal, threading
import sys
from pathlib import Path
from train.stop import StopRequest
with StopRequest(Path(sys.argv[1])):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while True:
        ctypes.CDLL(None).sleep(1000)  # outside Python, as a rank is that waits for a lost one
"""


@pytest.mark.slow
def test_sigterm_ends_a_rank_that_cannot_be_reached(tmp_path: Path) -> None:
    done = python("-c", HANG, str(tmp_path / "rank0.log"), timeout=25)
    assert done.returncode == 1, done.stderr
    assert "did not come round" in done.stderr
    assert 'File "<string>", line 9 in <module>' in (tmp_path / "rank0.log").read_text()


def test_a_run_folder_is_not_overwritten(images: list[str], uninterrupted: Path) -> None:
    before = (uninterrupted / "checkpoint.pt").read_bytes()
    with pytest.raises(LabError, match="resume=true"):
        train(images, uninterrupted)
    with pytest.raises(LabError, match=r"seed: 0 in the checkpoint, 5 now"):
        train(images, uninterrupted, "resume=true", "seed=5")
    assert (uninterrupted / "checkpoint.pt").read_bytes() == before


def test_resuming_a_complete_run_changes_nothing(images: list[str], uninterrupted: Path) -> None:
    before = states(uninterrupted)
    assert train(images, uninterrupted, "resume=true")["top1"] == records(uninterrupted)[-1]["top1"]
    assert all(torch.equal(value, before[key]) for key, value in states(uninterrupted).items())


def test_a_loss_that_explodes_is_told(images: list[str], tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"lower optim\.lr"):
        train(images, tmp_path / "run", "optim.lr=1e20", "clip_grad_norm=0.0", "optim.warmup_epochs=0")


def test_pictures_for_tensorboard(uninterrupted: Path) -> None:
    (file,) = (uninterrupted / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert {"train/inputs", "eval/confusion"} <= set(events.Tags()["images"])
    wanted = {"train/loss", "train/lr", "train/images_per_s", "train/data_wait", "train/grad_norm"}
    means = {"macro_f1", "weighted_f1", "balanced_accuracy", "auc_roc", "average_precision"}
    wanted |= {f"eval/{name}" for name in ("top1", "top5", *means)}
    assert wanted <= set(events.Tags()["scalars"])
    assert {f"eval/pr_curve/class_00{label}" for label in (0, 1)} <= set(events.Tags()["tensors"])


@pytest.mark.slow
def test_three_processes_do_not_divide_four_images(images: list[str], tmp_path: Path) -> None:
    done = torchrun(3, "-m", "train", *overrides(images, tmp_path / "run", "accumulate=1"))
    assert done.returncode != 0
    assert done.stderr.count("batch_size 4 is the global batch and does not divide into 3 rank(s)") == 1


@pytest.mark.slow
def test_compiled_training_runs(images: list[str], tmp_path: Path) -> None:
    assert (
        0 <= train(images, tmp_path / "run", "compile=true", "epochs=1", "optim.warmup_epochs=0")["top1"] <= 1
    )
