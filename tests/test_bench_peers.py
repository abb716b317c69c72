"""What is compared does the same work: every contender's steps lead to the same weights."""

from __future__ import annotations

import copy

import pytest
import torch

from scripts.bench_loop import InMemory, bench_config, drawn_spec, our_loop, our_training, random_batches
from scripts.bench_peers import ALONE, CONTENDERS
from train.strategy import Single

CPU = torch.device("cpu")


def test_every_contender_takes_the_same_steps() -> None:
    config = bench_config(["data.input.size=32", "batch_size=4", "optim.lr=0.01"], steps=3)
    torch.manual_seed(5)
    batches = random_batches(config, 3, CPU)
    with our_training(config, drawn_spec(config), Single(ALONE, CPU, "fp32")) as (training, job):
        start = {key: value.clone() for key, value in training.model.state_dict().items()}
        others = {}
        for name, make in CONTENDERS.items():
            model = copy.deepcopy(training.model)
            try:
                epoch = make(config, model, CPU, "fp32")
            except ImportError:
                assert name in ("timm", "fabric"), name
                continue
            epoch(batches)
            others[name] = model.state_dict()
        assert our_loop(training, InMemory(batches, 3), job) > 0
    ours = training.model.state_dict()
    weights = [key for key in ours if key.endswith(".weight")]
    assert not any(torch.equal(ours[key], start[key]) for key in weights)
    for name, state in others.items():
        # The cosine has fallen by a millionth in these steps.
        assert [key for key in weights if not torch.allclose(state[key], ours[key], atol=1e-4)] == [], name


@pytest.mark.parametrize("count", [1, 3])
def test_a_turn_takes_as_many_batches_as_it_says(count: int) -> None:
    config = bench_config(["data.input.size=32", "batch_size=2"], steps=count)
    stream = iter(random_batches(config, 5, CPU))
    assert len(list(InMemory(stream, count))) == count
    assert len(list(stream)) == 5 - count
