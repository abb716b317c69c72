"""A chain of stages: measured, done once, gone on with after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.compress import OptimizeConfig
from configs.load import load
from data.prepare import Splits
from deploy.errors import LabError
from optimize.chain import format_chain, require_files, require_same_stage
from optimize.finetune import finetune_config
from optimize.stage import Context, StageRecord
from tests.processes import ROOT, environment, python
from tests.test_prune import network, saved
from train.checkpoint import NAME, load_checkpoint
from train.structure import channels_of

TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=16", "data.num_val=6", "data.width=40",
    "data.height=36", "data.input.size=32", "data.input.resize=32", "model=mobilenet_v2", "batch_size=4",
    "epochs=1", "optim.lr=0.01", "optim.warmup_epochs=0", "precision=fp32", "device=cpu", "log_every=1",
    "loader.threads=1", "model.dropout=0.2",
]  # fmt: skip
QUICK = ["finetune.epochs=3", "latency.seconds=0", "prune.importance=l1", "gate.max_drop=100"]


def config(*overrides: str) -> OptimizeConfig:
    return load("optimize", OptimizeConfig, ["checkpoint=c.pt", *overrides])


def record(stage: str, top1: float, drop: float) -> StageRecord:
    return StageRecord(stage, {"keep": 0.5}, "0" * 64, 1000, 2000, 3000, top1, 10, drop, 1.5, 2.0, {})


def test_the_table_marks_what_falls_through_the_gate() -> None:
    text = format_chain(
        [record("original", 0.9, 0.0), record("prune", 0.5, 40.0), record("finetune", 0.9, 0.2)], 0.5
    )
    gates = [line for line in text.splitlines() if line.startswith("GATE")]
    assert gates == ["GATE: 1-prune is 40.00 points below the original, gate.max_drop is 0.5"]
    assert "2-finetune" in text
    widths = {len(line) for line in text.splitlines()[2:5]}
    assert len(widths) == 1


def test_a_stage_of_other_settings_is_refused() -> None:
    done = record("prune", 0.9, 0.0)
    require_same_stage(Path("1-prune"), done, {"keep": 0.5}, "0" * 64)
    with pytest.raises(LabError, match=r"1-prune is of other settings \(keep=0.5 there, 0.7 now; another"):
        require_same_stage(Path("1-prune"), done, {"keep": 0.7}, "1" * 64)


def test_a_stage_without_its_files_is_refused(tmp_path: Path) -> None:
    done = record("prune", 0.9, 0.0)
    with pytest.raises(LabError, match=r"has a record, but no fp32.onnx and no checkpoint.pt: remove the"):
        require_files(tmp_path, done)
    (tmp_path / "fp32.onnx").touch()
    require_files(tmp_path, record("original", 0.9, 0.0))
    (tmp_path / "checkpoint.pt").touch()
    require_files(tmp_path, done)
    with pytest.raises(LabError, match=r"but no int8-cpu.onnx: remove"):
        require_files(tmp_path, record("quantize", 0.9, 0.0))


def test_a_record_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert StageRecord.read(path) is None
    path.write_text(json.dumps({"stage": "prune"}))
    with pytest.raises(LabError, match=r"is no record of a stage .* remove its folder"):
        StageRecord.read(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages=[]", "stages"),
        ("stages=[prune,squeeze]", "squeeze"),
        ("prune.keep=1.5", "prune.keep"),
        ("prune.importance=l3", "prune.importance"),
        ("finetune.warmup_epochs=9.0", "warmup_epochs 9 must be less than epochs 5"),
        ("prune.kepe=0.5", "did you mean keep?"),
    ],
)
def test_mistakes_are_refused(override: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        config(override)


def test_the_settings_of_finetuning_have_one_home() -> None:
    ours = config("finetune.epochs=3", "finetune.teachers=[]", "prune.finetune=${finetune}")
    assert ours.sparsify.finetune == ours.prune.finetune == ours.finetune
    assert (ours.finetune.epochs, ours.finetune.teachers) == (3, [])
    alone = config("sparsify.finetune.epochs=2")
    assert alone.sparsify.finetune == replace(alone.finetune, epochs=2)
    assert config().prune.finetune is None


def test_a_finetuning_is_the_training_but_for_what_it_says(tmp_path: Path) -> None:
    source = saved(network(), "resnet18", tmp_path)
    trained = load_checkpoint(source).config
    context = Context(
        config=config("finetune.lr=0.003", "finetune.teachers=[original,other.pt]", "processes=2"),
        original=Path("first.pt"),
        spec=load_checkpoint(source).input_spec,
        data=replace(trained.data, root="moved"),
        loader=trained.loader,
        splits=Splits.__new__(Splits),
    )
    ours = finetune_config(source, tmp_path / "2-finetune", context, context.config.finetune)
    assert ours.model == replace(trained.model, weights=str(source), new_head=False)
    assert ours.optim == replace(trained.optim, lr=0.003, warmup_epochs=0.0)
    assert ours.distill.teachers == ["first.pt", "other.pt"]
    assert (ours.data.root, ours.processes, ours.epochs, ours.resume) == ("moved", 2, 5, True)
    assert (ours.batch_size, ours.seed, ours.mixup) == (trained.batch_size, trained.seed, trained.mixup)


KILL = """
import os, signal, sys
import train.loop as loop
from configs.load import run_command
from configs.compress import OptimizeConfig
from optimize.__main__ import main
keep = loop.lr_at
def lr_at(step, *rest):
    if step == 6:  # the middle of the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return keep(step, *rest)
loop.lr_at = lr_at
run_command("optimize", OptimizeConfig, main)
"""


@pytest.mark.slow
def test_a_killed_chain_goes_on_bit_for_bit(tmp_path: Path) -> None:
    images = [f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    done = python("-m", "train", *TINY, *images, f"run_dir={tmp_path / 'run'}", env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    original = (tmp_path / "run" / NAME).read_bytes()
    command = [f"checkpoint={tmp_path / 'run' / NAME}", *QUICK]
    whole = python("-m", "optimize", *command, f"out={tmp_path / 'whole'}", env={"OMP_NUM_THREADS": "1"})
    assert whole.returncode == 0, whole.stderr
    assert "2-finetune" in whole.stdout
    script = tmp_path / "kill.py"
    script.write_text(KILL)
    killed = subprocess.run(
        [sys.executable, str(script), *command, f"out={tmp_path / 'killed'}"],
        env=environment({"OMP_NUM_THREADS": "1"}), cwd=ROOT, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / "1-prune" / "record.json").exists()
    assert not (tmp_path / "killed" / "2-finetune" / "record.json").exists()
    again = python("-m", "optimize", *command, f"out={tmp_path / 'killed'}", env={"OMP_NUM_THREADS": "1"})
    assert again.returncode == 0, again.stderr
    assert "1-prune ..." not in again.stdout
    one, other = (load_checkpoint(tmp_path / out / "2-finetune" / NAME) for out in ("whole", "killed"))
    assert one.structure == other.structure
    assert one.structure[0]["change"] == "channels"
    assert all(torch.equal(value, other.model[key]) for key, value in one.model.items())
    assert (tmp_path / "run" / NAME).read_bytes() == original
    refused = python("-m", "optimize", *command, "prune.keep=0.7", f"out={tmp_path / 'whole'}")
    assert refused.returncode == 2
    assert "keep=0.5 there, 0.7 now" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_widths_are_kept_by_name(tmp_path: Path) -> None:
    change = channels_of(network())
    assert change["layers"]["layer2.0.downsample.0"] == [64, 128]
    assert change["layers"]["bn1"] == [64, 64]
    assert json.loads(json.dumps(change)) == change
