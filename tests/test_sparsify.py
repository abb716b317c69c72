"""The stage that makes weights sparse: in rounds, refused where it must be, gone on with after a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.compress import OptimizeConfig
from configs.load import load
from deploy.errors import LabError
from optimize.finetune import finetune
from optimize.prune import prune_stage
from optimize.rounds import begin
from optimize.sparsify import (
    choose_masks,
    sparsify_stage,
)
from optimize.stage import save_changed
from tests.processes import python
from tests.rounds import context, different_tensors, killed, opened, settings, tiny_run, trained, weight
from train.checkpoint import Checkpoint, load_checkpoint, restore_model
from train.masks import masked_layers, set_masks
from train.structure import with_masks


@pytest.fixture(scope="module", name="trained")
def _trained() -> Checkpoint:
    return trained()


def test_channels_are_not_cut_under_masks(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)
    set_masks(model, choose_masks(model, 0.6, "unstructured", "uniform", []))
    save_changed(tmp_path, trained, model, with_masks([], model))
    config = load("optimize", OptimizeConfig, ["checkpoint=x.pt"])
    with pytest.raises(LabError, match=r"masked.*stages=\[prune,sparsify\]"):
        prune_stage(tmp_path / "checkpoint.pt", tmp_path / "0-prune", context(config, trained))
    assert not (tmp_path / "0-prune").exists()


def test_rounds_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint.pt"
    source.write_bytes(b"one")
    config = load("optimize", OptimizeConfig, ["checkpoint=x.pt"])
    begin(tmp_path / "1-sparsify", config.sparsify, source)
    begin(tmp_path / "1-sparsify", config.sparsify, source)
    with pytest.raises(LabError, match=r"sparsity=0\.8 there, 0\.7 now"):
        begin(tmp_path / "1-sparsify", replace(config.sparsify, sparsity=0.7), source)
    source.write_bytes(b"other")
    with pytest.raises(LabError, match="another checkpoint went in"):
        begin(tmp_path / "1-sparsify", config.sparsify, source)


def test_settings_are_checked_together() -> None:
    def config(*overrides: str) -> OptimizeConfig:
        return load("optimize", OptimizeConfig, ["checkpoint=x.pt", *overrides])

    assert config("sparsify.pattern=2:4").sparsify.pattern == "2:4"
    assert config("sparsify.rounds=1", "sparsify.finetune=null").sparsify.finetune is None
    with pytest.raises(LabError, match="finetune=null leaves rounds 3 without training"):
        config("sparsify.finetune=null")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.mark.slow
def test_the_command(run_dir: Path, tmp_path: Path) -> None:
    done = python(
        "-m", "optimize", *settings(run_dir, f"out={tmp_path}", "stages=[lottery,sparsify]"), timeout=900
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads((tmp_path / f"{n}/record.json").read_text()) for n in ("1-lottery", "2-sparsify")]
    lottery, sparsify = (record["found"] for record in records)
    assert lottery["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert lottery["top1"] == lottery["rounds"][-1]["top1"]
    assert 7 * lottery["control_top1"] == pytest.approx(round(7 * lottery["control_top1"]))  # of 7 images
    winner, control = (load_checkpoint(tmp_path / f"1-lottery/{n}/start.pt") for n in ("round-2", "control"))
    masks = [name for name in winner.model if name.endswith(".mask")]
    assert masks
    assert all(torch.equal(winner.model[name], control.model[name]) for name in masks)
    # What the first stage took is gone in the second, which rises from there.
    assert [r["sparsity"] for r in sparsify["rounds"]] == pytest.approx([0.8875, 0.9], abs=1e-4)
    assert sparsify["sparsity"] == pytest.approx(0.9, abs=1e-4)
    assert sparsify["bitmask_bytes"] < 0.3 * sparsify["dense_bytes"]
    last = load_checkpoint(tmp_path / "2-sparsify" / "checkpoint.pt").model
    assert not any(bool((last[name] & ~winner.model[name]).any()) for name in masks)


@pytest.mark.slow
def test_rounds_go_on_after_a_kill_and_masks_outlast_finetuning(run_dir: Path, tmp_path: Path) -> None:
    source, ours = run_dir / "checkpoint.pt", opened(run_dir)
    found = sparsify_stage(source, tmp_path / "whole", ours)
    assert [r["sparsity"] for r in found["rounds"]] == pytest.approx([0.7875, 0.9])
    whole = tmp_path / "whole" / "checkpoint.pt"
    for where in ("between", "inside"):
        folder = tmp_path / where
        killed(where, "round-2", "sparsify", source, folder, settings(run_dir))
        assert not (folder / "checkpoint.pt").exists()
        sparsify_stage(source, folder, ours)
        assert different_tensors(folder / "checkpoint.pt", whole) == []
    lines = (tmp_path / "whole" / "round-1" / "diagnosis.jsonl").read_text().splitlines()
    layers = [layer for line in lines for layer in json.loads(line)["layers"].values()]
    assert layers
    assert all(layer["grad_norm"] is not None for layer in layers)

    finetune(whole, tmp_path / "after", ours)
    after = restore_model(load_checkpoint(tmp_path / "after" / "checkpoint.pt"))
    before = restore_model(load_checkpoint(whole))
    for name in masked_layers(before):
        assert torch.equal(weight(before, name) == 0, weight(after, name) == 0)
        assert not torch.equal(weight(before, name), weight(after, name))
