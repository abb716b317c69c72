"""What a checkpoint promises when things go wrong."""

from __future__ import annotations

import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from train.checkpoint import (
    Checkpoint,
    Progress,
    load_checkpoint,
    require_same_run,
    restore_model,
    save_checkpoint,
)
from train.model import build_model
from train.optim import build_optimizer
from train.state import optimizer_tensors

CONFIG = load("train", TrainConfig, ["model=mobilenet_v2", "data=digits"])
SPEC = InputSpec(32, 32, (0.5,) * 3, (0.5,) * 3, ("cat", "dog"))


def checkpoint(step: int) -> Checkpoint:
    model = build_model(CONFIG.model, SPEC.num_classes)
    return Checkpoint(
        config=CONFIG,
        input_spec=SPEC,
        structure=[],
        model=model.state_dict(),
        ema=None,
        optimizer=optimizer_tensors(build_optimizer(CONFIG.optim, model), model),
        scaler={},
        loader={"position": step, "num_steps": 10},
        progress=Progress(step=step, epoch=1, best_score=0.5),
        metrics={"top1": 0.5},
    )


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to write more to any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_everything_comes_back(tmp_path: Path) -> None:
    saved = checkpoint(3)
    save_checkpoint(tmp_path / "c.pt", saved)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert replace(loaded, model={}) == replace(saved, model={})
    assert all(torch.equal(loaded.model[key], value) for key, value in saved.model.items())
    state = restore_model(loaded).state_dict()
    assert all(torch.equal(state[key], value) for key, value in saved.model.items())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint(3))
    with files_of_at_most(1 << 20), pytest.raises(LabError, match=r"could not be written.*MiB are free"):
        save_checkpoint(path, checkpoint(4))
    assert load_checkpoint(path).progress.step == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint(3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LabError, match="truncated"):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("content", [{"format": 1, "model": Bomb()}, Bomb()], ids=["inside", "bare"])
def test_opening_a_file_runs_no_code(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "c.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(content))
    for name in ("c.pt", "p.pt"):
        with pytest.raises(LabError, match="cannot be read"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(build_model(CONFIG.model, 2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(LabError, match="no edgelab checkpoint"):
        load_checkpoint(tmp_path / "weights.pt")
    torch.save({"format": 99}, tmp_path / "later.pt")
    with pytest.raises(LabError, match="format 99, this edgelab reads 2"):
        load_checkpoint(tmp_path / "later.pt")
    with pytest.raises(LabError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")


def test_weights_of_another_network_are_refused() -> None:
    other = load("train", TrainConfig, ["model=resnet18"])
    with pytest.raises(LabError, match="do not fit"):
        restore_model(replace(checkpoint(0), config=other))


def test_a_run_may_move_but_not_change() -> None:
    require_same_run(CONFIG, load("train", TrainConfig, ["model=mobilenet_v2", "loader=torch", "run_dir=x"]))
    other = load("train", TrainConfig, ["model=resnet18", "optim.lr=0.5"])
    with pytest.raises(LabError, match=r"(?s)model\.name.*optim\.lr: 0.05 in the checkpoint, 0.5 now"):
        require_same_run(CONFIG, other)
