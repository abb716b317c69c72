"""Lottery tickets: what they start from, and how they are trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.compress import OptimizeConfig
from configs.load import load
from deploy.errors import LabError
from optimize.lottery import (
    early_checkpoint,
    facts_to_rewind,
    lottery_stage,
    recipe,
    redrawn,
    rewound,
    ticket,
    ticket_schedule,
    under_way,
)
from optimize.sparsify import (
    choose_masks,
)
from optimize.stage import save_changed
from tests.rounds import context, opened, tiny_run, trained, weight
from train.checkpoint import Checkpoint, Progress, load_checkpoint, restore_model, save_checkpoint
from train.masks import masked_layers
from train.structure import build_network


@pytest.fixture(scope="module", name="trained")
def _trained() -> Checkpoint:
    return trained()


def test_a_ticket_is_its_start_times_the_mask(trained: Checkpoint) -> None:
    end = restore_model(trained)
    masks = choose_masks(end, 0.6, "unstructured", "global", ["head"])
    start, structure = rewound(trained, None)
    model = ticket(start, masks)
    torch.manual_seed(trained.config.seed)
    first = build_network(trained.config.model, 2, [])
    control = ticket(redrawn(trained, structure), masks)
    for name, mask in masks.items():
        assert torch.equal(weight(model, name), weight(first, name) * mask)
        assert not torch.equal(weight(model, name), weight(end, name) * mask)
        assert torch.equal(weight(control, name) != 0, mask)
        assert not torch.equal(weight(control, name), weight(model, name))
    assert masked_layers(start) == []


def test_a_ticket_goes_back_to_an_early_checkpoint(trained: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(3)
    early = build_network(trained.config.model, 2, [])
    save_changed(tmp_path, trained, early, [], "early.pt")
    start, _ = rewound(trained, tmp_path / "early.pt")
    assert torch.equal(weight(start, "features.4.conv.0.0"), weight(early, "features.4.conv.0.0"))
    other = build_network(replace(trained.config.model, name="resnet18"), 2, [])
    resnet = replace(
        trained, config=replace(trained.config, model=replace(trained.config.model, name="resnet18"))
    )
    save_changed(tmp_path, resnet, other, [], "other.pt")
    with pytest.raises(LabError, match="is not the network of the checkpoint"):
        rewound(trained, tmp_path / "other.pt")


def test_a_name_alone_is_beside_the_checkpoint() -> None:
    original = Path("runs/seed=1/checkpoint.pt")
    assert early_checkpoint("epoch-2.pt", original) == Path("runs/seed=1/epoch-2.pt")
    assert early_checkpoint("runs/other/epoch-2.pt", original) == Path("runs/other/epoch-2.pt")
    assert early_checkpoint(None, original) is None


def test_what_a_rewind_may_be(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)

    def facts(**changes: Any) -> Any:
        save_checkpoint(tmp_path / "early.pt", replace(trained, **changes))
        return facts_to_rewind(tmp_path / "early.pt", trained.config)

    at = Progress(step=4, epoch=0, best_epoch=0)
    begun = under_way(facts(progress=at), trained.config, model, [])
    assert (begun.progress, begun.loader["num_steps"]) == (at, 6)
    assert begun.ema is not None
    assert begun.optimizer == {}
    with pytest.raises(LabError, match="is the end of the run: all 1 epochs"):
        facts(progress=Progress(step=6, epoch=1))
    with pytest.raises(LabError, match=r"of another run \(batch_size=8 there, 4 here\)"):
        facts(config=replace(trained.config, batch_size=8))
    with pytest.raises(LabError, match=r"epochs 2 with rewind=e\.pt"):
        load("optimize", OptimizeConfig, ["checkpoint=x.pt", "lottery.rewind=e.pt", "lottery.epochs=2"])


def test_a_shorter_recipe_keeps_its_form(trained: Checkpoint) -> None:
    config = load("optimize", OptimizeConfig, ["checkpoint=x.pt", "lottery.epochs=2"])
    run = replace(trained.config, epochs=8, optim=replace(trained.config.optim, warmup_epochs=2.0, cycles=2))
    short = recipe(run, Path("start.pt"), Path("round-1"), context(config, trained))
    assert (short.epochs, short.optim.warmup_epochs, short.optim.lr) == (2, 0.5, run.optim.lr)
    assert (short.seed, short.mixup, short.data) == (run.seed, run.mixup, run.data)
    odd = replace(run, epochs=9, optim=replace(run.optim, cycles=3))
    with pytest.raises(LabError, match=r"lottery\.epochs 2 must be a multiple of .*cycles 3"):
        recipe(odd, Path("start.pt"), Path("round-1"), context(config, trained))


def test_the_schedule() -> None:
    # Frankle and Carbin 2019: a fifth of what is left in each round.
    assert ticket_schedule(1 - 0.8**3, 3) == pytest.approx([0.2, 0.36, 0.488])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("run"))


@pytest.mark.slow
def test_a_ticket_of_all_weights_begins_as_the_run(run_dir: Path, tmp_path: Path) -> None:
    """The same weights, images, crops and mixing: the first step has the same loss."""
    ours = opened(run_dir, "lottery.sparsity=1e-9", "lottery.rounds=1")
    lottery_stage(run_dir / "checkpoint.pt", tmp_path / "stage", ours)
    began, again, control = (
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        for folder in (run_dir, tmp_path / "stage" / "round-1", tmp_path / "stage" / "control")
    )
    assert began["step"] == again["step"] == 1
    assert again["loss"] == pytest.approx(began["loss"], rel=1e-5)
    assert control["loss"] != pytest.approx(began["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_rewound_ticket_goes_on_at_its_step(run_dir: Path, tmp_path: Path) -> None:
    """Of the weights of step 4 nothing is masked: step 5 has the run's loss and learning rate."""
    early = run_dir / "previous.pt"
    assert load_checkpoint(early).progress.step == 4
    ours = opened(run_dir, "lottery.sparsity=1e-9", "lottery.rounds=1", f"lottery.rewind={early}")
    lottery_stage(run_dir / "checkpoint.pt", tmp_path / "stage", ours)
    began, again, control = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run_dir, tmp_path / "stage" / "round-1", tmp_path / "stage" / "control")
    )
    rates = {line["step"]: line["lr"] for line in began if "lr" in line}
    assert {line["step"]: line["lr"] for line in again if "lr" in line} == {s: rates[s] for s in (5, 6)}
    assert {line["step"]: line["lr"] for line in control if "lr" in line} == rates
    assert again[0]["loss"] == pytest.approx(began[4]["loss"], rel=1e-5)
