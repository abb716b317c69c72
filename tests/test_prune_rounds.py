"""Pruning in rounds: to the same network in the end, trained between, and gone on with after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.compress import OptimizeConfig, PruneConfig
from configs.load import load
from deploy.errors import LabError
from optimize.prune import prune, prune_stage, share_schedule
from optimize.widths import channel_groups, macs
from tests.compressed import SIZE, resnet18
from tests.rounds import different_tensors, killed, opened, settings, tiny_run
from train.checkpoint import load_checkpoint, restore_model
from train.structure import channels_of

ROUNDS = [
    "prune.rounds=2", "prune.finetune=${finetune}", "prune.importance=l1", "prune.keep=0.4",
]  # fmt: skip


def config(*overrides: str) -> PruneConfig:
    return load("optimize", OptimizeConfig, ["checkpoint=c.pt", *overrides]).prune


def test_the_schedule_leaves_the_same_share_each_time() -> None:
    assert share_schedule(0.5, 1) == [0.5]
    assert share_schedule(0.512, 3) == pytest.approx([0.8, 0.64, 0.512])
    assert share_schedule(0.3, 7)[-1] == 0.3


@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_rounds_end_at_keep_of_the_first_network(scope: str) -> None:
    ours = config("prune.importance=l2", "prune.keep=0.4", f"prune.scope={scope}")
    model = resnet18()
    groups = channel_groups(model, SIZE)
    first, widths = groups.cost(macs, groups.widths), groups.widths
    begun = None
    for share in share_schedule(ours.keep, 2):
        begun = prune(model, SIZE, ours, [], 0, begun=begun, share=share)
        assert 0.9 * share < begun.after / first <= share
        assert (begun.before, begun.widths_before) == (first, widths)
    assert begun is not None
    assert begun.widths_after == channel_groups(model, SIZE).widths


def test_no_layer_loses_more_than_max_cut_in_all_rounds() -> None:
    ours = config("prune.importance=l1", "prune.keep=0.45", "prune.max_cut=0.5")
    model = resnet18()
    begun = None
    for share in share_schedule(ours.keep, 2):
        begun = prune(model, SIZE, ours, [], 0, begun=begun, share=share)
    assert begun is not None
    shares = {name: begun.widths_after[name] / width for name, width in begun.widths_before.items()}
    assert min(shares.values()) == 0.5
    with pytest.raises(LabError, match=r"keep 0\.1 of the macs cannot be met"):  # in the first round
        prune(resnet18(), SIZE, replace(ours, keep=0.1), [], 0, share=0.9)


def test_rounds_train() -> None:
    with pytest.raises(LabError, match="finetune=null leaves rounds 2 without training"):
        config("prune.rounds=2")
    with pytest.raises(LabError, match="latency_table is for by=latency, not for by=macs"):
        config("prune.latency_table=t.json")


@pytest.mark.slow
def test_rounds_go_on_after_a_kill(tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path)
    source, ours = run_dir / "checkpoint.pt", opened(run_dir, *ROUNDS)
    found = prune_stage(source, tmp_path / "whole", ours)
    assert [r["share"] for r in found["rounds"]] == pytest.approx([0.4**0.5, 0.4])
    assert all(0 <= r["top1"] <= 1 for r in found["rounds"])
    assert 0.36 < found["after"] / found["before"] <= 0.4
    whole = tmp_path / "whole" / "checkpoint.pt"
    left = load_checkpoint(whole)
    assert left.structure == [channels_of(restore_model(left))]
    groups = channel_groups(restore_model(left), 32)
    assert groups.cost(macs, groups.widths) == found["after"]
    cut, trained = (
        load_checkpoint(tmp_path / "whole" / "round-2" / n) for n in ("start.pt", "checkpoint.pt")
    )
    assert not torch.equal(cut.model["classifier.1.weight"], trained.model["classifier.1.weight"])
    for where in ("between", "inside"):
        folder = tmp_path / where
        killed(where, "round-2", "prune", source, folder, settings(run_dir, *ROUNDS))
        assert not (folder / "checkpoint.pt").exists()
        done = (folder / "round-1" / "checkpoint.pt").stat().st_mtime_ns
        assert prune_stage(source, folder, ours) == found
        assert (folder / "round-1" / "checkpoint.pt").stat().st_mtime_ns == done, "round 1 ran again"
        assert different_tensors(folder / "checkpoint.pt", whole) == []
    with pytest.raises(LabError, match=r"rounds=2 there, 3 now"):
        prune_stage(source, tmp_path / "whole", opened(run_dir, *ROUNDS, "prune.rounds=3"))
