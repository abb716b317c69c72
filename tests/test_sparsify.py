"""Masks: what goes and stays away, in training, in a checkpoint and in the ONNX file; and lottery tickets."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from configs.compress import OptimizeConfig
from configs.load import load
from configs.schema import AdamWConfig, OptimConfig, SgdConfig, TrainConfig
from data.prepare import Splits, input_spec
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from optimize.chain import open_context, prune_stage
from optimize.export import export_onnx
from optimize.finetune import finetune
from optimize.lottery import lottery_stage, recipe, redrawn, rewound, ticket, ticket_schedule
from optimize.rounds import begin
from optimize.sparsify import (
    choose_masks,
    cubic_schedule,
    is_two_four,
    require_reachable,
    sparsify_stage,
    sparsity_record,
)
from optimize.stage import Context, save_changed
from tests.processes import python
from train.checkpoint import Checkpoint, Progress, load_checkpoint, restore_model
from train.ema import Ema
from train.masks import mask_of, masked_layers, set_masks, weight_parameter
from train.optim import add_l1, build_optimizer
from train.run import run
from train.structure import build_network, plain, with_masks
from train.weights import starting_structure, starting_weights

# 24 images of 32 px in batches of 4 over two backward passes: 6 steps an epoch.
TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=24", "data.num_val=7", "data.width=48",
    "data.height=40", "data.input.size=32", "data.input.resize=36", "model=mobilenet_v2",
    "model.dropout=0.3", "mixup=0.2", "ema_decay=0.9", "batch_size=4", "accumulate=2", "epochs=1",
    "log_every=1", "checkpoint_every=4", "optim.lr=0.01", "optim.warmup_epochs=0.5", "precision=fp32",
    "device=cpu", "diagnose.every=1", "clip_grad_norm=1.0",
]  # fmt: skip
SPEC = InputSpec(size=8, resize=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), class_names=("a", "b", "c"))


def small() -> nn.Sequential:
    """A stem of 3 channels, a depthwise, a pointwise and a plain convolution, a head; all of one scale."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(12, 6, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.3)
    nn.init.uniform_(cast(nn.BatchNorm2d, model[1]).weight, -1.5, 1.5)
    return model


def weight(model: nn.Module, name: str) -> torch.Tensor:
    return cast(torch.Tensor, model.get_submodule(name).weight).detach()


def masked(sparsity: float, pattern: str = "unstructured", scope: str = "global") -> nn.Sequential:
    model = small()
    set_masks(model, choose_masks(model, sparsity, pattern, scope, []))
    return model


@pytest.fixture(scope="module")
def trained() -> Checkpoint:
    """Of MobileNetV2, as a run leaves it; its weights are not those that it began with."""
    config = load("train", TrainConfig, TINY)
    spec = input_spec(config.data, ("a", "b"))
    torch.manual_seed(7)
    model = build_network(config.model, 2, [])
    facts: dict[str, Any] = {"scaler": {}, "loader": {"position": 0, "num_steps": 6}, "metrics": {}}
    return Checkpoint(
        config, spec, [], **facts, progress=Progress(), model=model.state_dict(), ema=None, optimizer={}
    )


def test_exactly_the_smallest_go() -> None:
    model = small()
    layers = {"0": 216, "3": 72, "4": 96, "5": 648, "8": 18}
    together = choose_masks(model, 0.77, "unstructured", "global", [])
    assert {name: mask.numel() for name, mask in together.items()} == layers
    assert sum(int((~mask).sum()) for mask in together.values()) == round(0.77 * 1050)
    kept = torch.cat([weight(model, name)[mask] for name, mask in together.items()]).abs()
    gone = torch.cat([weight(model, name)[~mask] for name, mask in together.items()]).abs()
    assert kept.min() > gone.max()
    each = choose_masks(model, 0.77, "unstructured", "uniform", [])
    assert {n: int((~m).sum()) for n, m in each.items()} == {n: round(0.77 * k) for n, k in layers.items()}
    assert all(weight(model, n)[m].abs().min() > weight(model, n)[~m].abs().max() for n, m in each.items())


def test_of_equal_weights_the_first_go() -> None:
    model = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Linear(4, 1))
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    mask = choose_masks(model, 0.5, "2:4", "uniform", ["head"])["0"]
    assert mask.flatten().tolist() == [False, False, True, True]


def test_a_layer_is_not_emptied() -> None:
    model = small()
    with torch.no_grad():
        weight(model, "3").mul_(1e-3)
    with pytest.raises(LabError, match=r"0\.9 with scope=global leaves no weight in 3: .*scope=uniform"):
        choose_masks(model, 0.9, "unstructured", "global", [])
    assert choose_masks(model, 0.9, "unstructured", "uniform", [])["3"].any()
    with pytest.raises(LabError, match="leaves no weight in 8"):
        choose_masks(model, 0.98, "unstructured", "uniform", [])
    assert masked_layers(model) == []


def test_layers_stay_dense_by_name_and_by_place() -> None:
    model = small()
    assert list(choose_masks(model, 0.5, "unstructured", "global", ["first", "head", "4"])) == ["3", "5"]
    with pytest.raises(LabError, match=r"\['conv9'\].*no such"):
        choose_masks(model, 0.5, "unstructured", "global", ["conv9"])
    with pytest.raises(LabError, match="no layer is left"):
        choose_masks(model, 0.5, "2:4", "global", ["4", "5"])


def test_two_of_four_along_the_input_channels() -> None:
    model = small()
    before = copy.deepcopy(model)
    masks = choose_masks(model, 0.5, "2:4", "uniform", [])
    # 3 channels, a depthwise layer, and 6 features are not in fours.
    assert list(masks) == ["4", "5"]
    for name, mask in masks.items():
        old = weight(before, name).abs()
        for k in range(old.shape[0]):
            for r in range(old.shape[2]):
                for s in range(old.shape[3]):
                    for c in range(0, old.shape[1], 4):
                        four, kept = old[k, c : c + 4, r, s], mask[k, c : c + 4, r, s]
                        assert set(four.topk(2).indices.tolist()) == set(kept.nonzero().flatten().tolist())
    set_masks(model, masks)
    record = sparsity_record(model)
    assert (record.two_four, record.dense) == (["4", "5"], ["0", "3", "8"])
    assert record.layers == {"0": 0.0, "3": 0.0, "4": 0.5, "5": 0.5, "8": 0.0}
    broken = weight(model, "5").clone()
    broken[1, 4:8, 2, 2] = 1.0
    assert not is_two_four(broken)
    assert not is_two_four(torch.zeros(8, 3, 1, 1))


@pytest.mark.parametrize("before", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_rounds_come_to_two_of_four(before: float, scope: str) -> None:
    model = masked(before) if before else small()
    present = require_reachable(model, 0.5, "2:4", scope, [])
    zeros = int((weight(model, "5") == 0).sum())
    for share in cubic_schedule(present, 0.5, 3):
        set_masks(model, choose_masks(model, share, "2:4", scope, []))
        now = int((weight(model, "5") == 0).sum())
        assert now >= zeros
        zeros = now
    assert is_two_four(weight(model, "4"))
    assert is_two_four(weight(model, "5"))
    if not before:
        assert zeros == 648 // 2


def test_what_is_gone_stays_gone_in_later_rounds() -> None:
    model = masked(0.3)
    first = {name: weight(model, name) != 0 for name in masked_layers(model)}
    with torch.no_grad():
        for name in first:  # the others have become small meanwhile
            weight_parameter(model.get_submodule(name)).mul_(1e-6)
    second = choose_masks(model, 0.6, "unstructured", "global", [])
    assert sum(int((~mask).sum()) for mask in second.values()) == round(0.6 * 1050)
    assert not any(bool((second[name] & ~first[name]).any()) for name in first)
    with pytest.raises(LabError, match=r"sparsity 0\.2: of the weights 0\.3 are zero already"):
        require_reachable(model, 0.2, "unstructured", "global", [])
    assert require_reachable(model, 0.6, "unstructured", "global", []) == pytest.approx(0.3)


def test_schedules() -> None:
    # Zhu and Gupta 2017, equation 1, by hand.
    assert cubic_schedule(0.0, 0.8, 2) == pytest.approx([0.7, 0.8])
    assert cubic_schedule(0.5, 0.9, 4) == pytest.approx([0.73125, 0.85, 0.89375, 0.9])
    assert cubic_schedule(0.0, 0.8, 5)[-1] == 0.8
    # Frankle and Carbin 2019: a fifth of what is left in each round.
    assert ticket_schedule(1 - 0.8**3, 3) == pytest.approx([0.2, 0.36, 0.488])


SGD = SgdConfig(
    name="sgd", lr=0.1, weight_decay=0.1, warmup_epochs=0.0, final_lr=0.0, cycles=1, l1=0.01, momentum=0.9,
    nesterov=True,
)  # fmt: skip
ADAMW = AdamWConfig(
    name="adamw", lr=0.1, weight_decay=0.1, warmup_epochs=0.0, final_lr=0.0, cycles=1, l1=0.01,
    betas=[0.9, 0.99], eps=1e-8,
)  # fmt: skip


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_masked_weights_stay_zero_in_training(config: OptimConfig) -> None:
    model = masked(0.7)
    zero = {name: weight(model, name) == 0 for name in masked_layers(model)}
    start = {name: weight(model, name).clone() for name in zero}
    average = Ema(copy.deepcopy(model), model, 0.5)
    optimizer = build_optimizer(config, model)
    generator = torch.Generator().manual_seed(1)
    for step in range(5):
        images = torch.randn(6, 3, 8, 8, generator=generator)
        F.cross_entropy(model(images), torch.tensor([0, 1, 2] * 2)).backward()
        add_l1(optimizer, config.l1)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
    for name, gone in zero.items():
        parameter = weight_parameter(model.get_submodule(name))
        assert not parameter[gone].any()
        assert not weight(average.model, name)[gone].any()
        assert not any(
            bool(value[gone].any()) for value in optimizer.state[parameter].values() if value.ndim > 1
        )
        assert (parameter[~gone] != start[name][~gone]).all()


def test_a_checkpoint_rebuilds_the_masks(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)
    set_masks(model, choose_masks(model, 0.6, "unstructured", "uniform", ["first"]))
    save_changed(tmp_path, trained, model, with_masks([], model))
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    again = restore_model(saved)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert torch.equal(plain(again)(images), model(images))
    assert masked_layers(again) == masked_layers(model)
    assert "features.0.0" not in masked_layers(again)
    # A second round changes the masks, not the list of changes.
    assert with_masks(saved.structure, again) == saved.structure
    assert sparsity_record(again) == sparsity_record(model)


def test_training_starts_from_masked_weights(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)
    set_masks(model, choose_masks(model, 0.6, "unstructured", "uniform", []))
    save_changed(tmp_path, trained, model, with_masks([], model))
    config = replace(trained.config.model, weights=str(tmp_path / "checkpoint.pt"))
    new = build_network(config, 2, starting_structure(config))
    new.load_state_dict(starting_weights(config, new))  # every tensor, those of the head too
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in new.state_dict().items())
    wider = build_network(config, 5, starting_structure(config))
    found = starting_weights(config, wider)
    assert not any(name.startswith("classifier.") for name in found)
    wider.load_state_dict(found, strict=False)
    head = mask_of(wider.get_submodule("classifier.1"))
    assert head is not None
    assert head.mask.all()  # a new head has nothing masked


def test_sizes_are_those_of_bitmasks_and_values() -> None:
    model = masked(0.5, scope="uniform")
    record = sparsity_record(model)
    floats = 1050 + (8 + 8 + 12 + 6 + 3) + 4 * 8  # weights, biases, BatchNorm
    assert record.dense_bytes == 4 * floats
    masks = 27 + 9 + 12 + 81 + 3  # a bit a weight
    assert record.bitmask_bytes == 4 * (floats - 525) + masks
    assert record.sparsity == 0.5
    assert sparsity_record(small()).bitmask_bytes == record.dense_bytes


def test_zeros_are_zeros_in_the_file(tmp_path: Path) -> None:
    model = masked(0.5, "2:4").eval()
    export_onnx(model, SPEC, tmp_path / "sparse.onnx")
    weights: list[npt.NDArray[Any]] = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "sparse.onnx").graph.initializer
        if len(tensor.dims) == 4
    ]
    by_shape = {array.shape: array for array in weights}
    for name in ("4", "5"):
        array = by_shape[tuple(weight(model, name).shape)]
        assert np.array_equal(array == 0, (weight(model, name) == 0).numpy())
        fours = array.reshape(len(array), -1, 4, *array.shape[2:])
        assert ((fours != 0).sum(2) == 2).all()
    assert masked_layers(model) == ["4", "5"]  # the network is as it was
    images = torch.randn(2, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(tmp_path / "sparse.onnx"))
    logits = session.run(["logits"], {"image": images.numpy()})[0]
    assert np.allclose(logits, model(images).detach().numpy(), atol=1e-5)


def context(config: OptimizeConfig, checkpoint: Checkpoint) -> Context:
    trained = checkpoint.config
    splits = cast(Splits, None)  # no image is looked at
    return Context(config, Path("x.pt"), checkpoint.input_spec, trained.data, trained.loader, splits)


def test_channels_are_not_cut_under_masks(trained: Checkpoint, tmp_path: Path) -> None:
    model = restore_model(trained)
    set_masks(model, choose_masks(model, 0.6, "unstructured", "uniform", []))
    save_changed(tmp_path, trained, model, with_masks([], model))
    config = load("optimize", OptimizeConfig, ["checkpoint=x.pt"])
    with pytest.raises(LabError, match=r"masked.*stages=\[prune,sparsify\]"):
        prune_stage(tmp_path / "checkpoint.pt", tmp_path / "0-prune", context(config, trained))
    assert not (tmp_path / "0-prune").exists()


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


def test_a_shorter_recipe_keeps_its_form(trained: Checkpoint) -> None:
    config = load("optimize", OptimizeConfig, ["checkpoint=x.pt", "lottery.epochs=2"])
    run = replace(trained.config, epochs=8, optim=replace(trained.config.optim, warmup_epochs=2.0, cycles=2))
    short = recipe(run, Path("start.pt"), Path("round-1"), context(config, trained))
    assert (short.epochs, short.optim.warmup_epochs, short.optim.lr) == (2, 0.5, run.optim.lr)
    assert (short.seed, short.mixup, short.data) == (run.seed, run.mixup, run.data)
    odd = replace(run, epochs=9, optim=replace(run.optim, cycles=3))
    with pytest.raises(LabError, match=r"lottery\.epochs 2 must be a multiple of .*cycles 3"):
        recipe(odd, Path("start.pt"), Path("round-1"), context(config, trained))


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


SETTINGS = [
    "latency.seconds=0", "sparsify.finetune.epochs=1", "sparsify.rounds=2", "sparsify.finetune.lr=0.01",
    "sparsify.sparsity=0.9", "sparsify.scope=uniform", "lottery.rounds=2", "lottery.scope=uniform",
    "finetune.epochs=1",
]  # fmt: skip
KILLER = """
import os, signal, sys
from pathlib import Path
import optimize.sparsify as sparsify
import train.saves as saves
from configs.compress import OptimizeConfig
from configs.load import load
from optimize.chain import open_context
def die():
    os.kill(os.getpid(), signal.SIGKILL)
where, folder, *arguments = sys.argv[1:]
save, changed = saves.save_checkpoint, sparsify.save_changed
def save_and_die(path, checkpoint, previous):
    save(path, checkpoint, previous)
    if where == "inside" and path.parent.name == "round-2" and checkpoint.progress.step == 4:
        die()
def change_or_die(folder, *rest):
    if where == "between" and folder.name == "round-2":
        die()
    changed(folder, *rest)
saves.save_checkpoint, sparsify.save_changed = save_and_die, change_or_die
config = load("optimize", OptimizeConfig, arguments)
sparsify.sparsify_stage(Path(config.checkpoint), Path(folder), open_context(config, print))
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    images = [f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}"]
    run(load("train", TrainConfig, [*TINY, *images, f"run_dir={folder / 'run'}"]))
    return folder / "run"


def settings(run_dir: Path, *more: str) -> list[str]:
    return [f"checkpoint={run_dir / 'checkpoint.pt'}", *SETTINGS, *more]


def opened(run_dir: Path, *more: str) -> Context:
    return open_context(load("optimize", OptimizeConfig, settings(run_dir, *more)), print)


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
    expected = load_checkpoint(tmp_path / "whole" / "checkpoint.pt")
    for where in ("between", "inside"):
        folder = tmp_path / where
        killed = python("-c", KILLER, where, str(folder), *settings(run_dir), timeout=900)
        assert killed.returncode == -9, killed.stderr
        assert not (folder / "checkpoint.pt").exists()
        sparsify_stage(source, folder, ours)
        got = load_checkpoint(folder / "checkpoint.pt")
        for one, other in ((expected.model, got.model), (expected.weights, got.weights)):
            assert one.keys() == other.keys()
            assert [key for key in one if not torch.equal(one[key], other[key])] == []
    lines = (tmp_path / "whole" / "round-1" / "diagnosis.jsonl").read_text().splitlines()
    layers = [layer for line in lines for layer in json.loads(line)["layers"].values()]
    assert layers
    assert all(layer["grad_norm"] is not None for layer in layers)

    finetune(tmp_path / "whole" / "checkpoint.pt", tmp_path / "after", ours)
    after = restore_model(load_checkpoint(tmp_path / "after" / "checkpoint.pt"))
    before = restore_model(expected)
    for name in masked_layers(before):
        assert torch.equal(weight(before, name) == 0, weight(after, name) == 0)
        assert not torch.equal(weight(before, name), weight(after, name))


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
