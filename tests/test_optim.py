"""Learning rate, parameter groups, moving average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from configs.load import load
from configs.schema import AdamWConfig, OptimConfig, SgdConfig, TrainConfig
from train.ema import Ema
from train.optim import build_optimizer, lr_at

SGD = SgdConfig(
    lr=0.4,
    weight_decay=0.1,
    warmup_epochs=2.0,
    final_lr=0.1,
    cycles=1,
    l1=0.0,
    name="sgd",
    momentum=0.9,
    nesterov=True,
)
ADAMW = AdamWConfig(
    lr=0.4,
    weight_decay=0.1,
    warmup_epochs=0.0,
    final_lr=0.0,
    cycles=1,
    l1=0.0,
    name="adamw",
    betas=[0.9, 0.99],
    eps=1e-8,
)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.04), (4, 0.2), (9, 0.4), (10, 0.4), (30, 0.4 * 0.55), (50, 0.04), (1000, 0.04)],
)
def test_warm_up_is_linear_and_the_cosine_ends_at_final_lr(step: int, expected: float) -> None:
    assert lr_at(step, steps_per_epoch=5, epochs=10, config=SGD) == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert lr_at(0, 5, 10, ADAMW) == 0.4


@pytest.mark.parametrize("config", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_no_decay_on_norms_and_biases(config: OptimConfig) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decay = {id(p): g["weight_decay"] for g in build_optimizer(config, net).param_groups for p in g["params"]}
    got = {name: decay[id(p)] for name, p in net.named_parameters()}
    assert got == {
        name: 0.1 if name in ("0.weight", "3.weight") else 0.0 for name, _ in net.named_parameters()
    }


def test_the_average_follows_its_formula_and_copies_counts() -> None:
    net = nn.BatchNorm1d(1)
    ema = Ema(copy.deepcopy(net), net, decay=0.5)
    net.load_state_dict(
        {**net.state_dict(), "weight": torch.tensor([3.0]), "num_batches_tracked": torch.tensor(7)}
    )
    ema.update(step=1)  # decay (1 + 1) / (10 + 1)
    state = ema.model.state_dict()
    assert state["weight"].item() == pytest.approx(2 / 11 * 1.0 + 9 / 11 * 3.0)
    ema.update(step=1000)
    assert state["weight"].item() == pytest.approx(0.5 * (2 / 11 + 27 / 11) + 0.5 * 3.0)
    assert state["num_batches_tracked"].item() == 7


def test_the_recipe_of_imagenet_warms_up_over_eight_epochs() -> None:
    config = load("train", TrainConfig, ["experiment=imagenet_resnet50", "data.root=/photos"])
    steps = 1_281_167 // config.batch_size
    assert lr_at(8 * steps - 1, steps, config.epochs, config.optim) == pytest.approx(0.256 * 2048 / 256)
