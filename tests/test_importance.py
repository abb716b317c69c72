"""What a channel matters: over all that read it, for any way of counting, and without a trace."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from deploy.errors import LabError
from optimize.importance import channel_scores, loss_rises
from optimize.prune import least_important, prune
from optimize.widths import channel_groups
from tests.test_prune import HALF, SIZE, images, network


def test_what_matters_least_goes() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("layer2.0.conv1.weight")[1::2] *= 1e-3
        model.get_parameter("layer2.0.bn1.weight")[1::2] *= 1e-3
        model.get_parameter("layer2.0.conv2.weight")[:, 1::2] *= 1e-3
    scores = channel_scores(model, channel_groups(model, SIZE), "l1", [], 0)["layer2.0.conv1"]
    assert set(least_important(scores, 64)) == set(range(1, 128, 2))
    kept = model.get_parameter("layer2.0.conv1.weight")[::2].clone()
    channel_groups(model, SIZE).cut({"layer2.0.conv1": least_important(scores, 64)})
    assert torch.equal(model.get_parameter("layer2.0.conv1.weight"), kept)


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("layer2.0.conv1", ["layer2.0.conv2"]),
        ("conv1", ["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1", "layer2.0.downsample.0"]),
        ("layer4.0.downsample.0", ["layer4.1.conv1", "fc.1"]),
    ],
)
def test_a_channel_matters_by_the_slope_of_the_loss_over_all_that_read_it(
    name: str, readers: list[str]
) -> None:
    model, channel, step = network(), 3, 1e-3
    batches = images()
    scores = loss_rises(model, channel_groups(model, SIZE), batches)

    def losses(factor: float) -> torch.Tensor:
        scaled = copy.deepcopy(model).double()
        for reader in readers:
            scaled.get_parameter(f"{reader}.weight").data[:, channel] *= factor
        return F.cross_entropy(scaled(batches[0][0].double()), batches[0][1], reduction="none")

    with torch.no_grad():
        slopes = (losses(1 + step) - losses(1 - step)) / (2 * step)
    assert float(scores[name][channel]) == pytest.approx(float(slopes.square().mean() / 2), rel=1e-2)


def test_scores_leave_the_network_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    (batch, _), *_ = images()
    expected = model(batch)
    loss_rises(model, channel_groups(model, SIZE), images())
    assert torch.equal(model(batch), expected)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_control_depends_on_its_seed_alone() -> None:
    model = network()
    groups = channel_groups(model, SIZE)
    one, same, other = (channel_scores(model, groups, "random", [], seed)["conv1"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_gradients_take_images() -> None:
    with pytest.raises(LabError, match=r"taylor: 0 images.*raise prune.num_images"):
        prune(network(), SIZE, replace(HALF, importance="taylor"), [], 0)
