"""Weights share a few values, also while they train, and go into a file of a few bits each."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from configs.compress import ClusterConfig, OptimizeConfig, PruneConfig
from configs.load import load
from configs.schema import TrainConfig
from deploy.errors import LabError
from deploy.shared_weights import read_shared_weights, unpack
from optimize.chain import run_chain
from optimize.cluster import cluster, cluster_stage, kmeans
from optimize.export import compare_onnx, export_onnx
from optimize.finetune import finetune
from optimize.prune import prune
from optimize.shared_weights import pack, write_shared_weights
from tests.compressed import SIZE, SPEC, images, logits, resnet18, restored, saved, tiny
from tests.processes import python
from tests.rounds import different_tensors, killed, opened, settings, tiny_run
from tests.test_train_run import TINY
from train.checkpoint import load_checkpoint
from train.codebooks import codebooks, share_weights
from train.model import count_parameters
from train.run import run
from train.structure import plain

FOUR = ClusterConfig(bits=4, first_last_bits=8, deflate=False)


def num_values(model: nn.Module) -> dict[str, int]:
    return {
        name: len(torch.unique(m.weight))
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    }


def changes(model: nn.Module) -> list[dict[str, Any]]:
    sizes = {name: len(codebook) for name, (codebook, _) in codebooks(model).items()}
    return [{"change": "codebooks", "layers": sizes}]


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images(8)), torch.arange(8))
    loss.backward()
    optimizer.step()
    return loss.item()


def test_kmeans_finds_the_nearest_of_the_means_and_the_same_each_time() -> None:
    values = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    indices = kmeans(values, 8)
    centres = np.array([values[indices == k].mean() for k in range(8)])
    nearest = np.abs(values[..., None] - centres).argmin(-1)
    assert (nearest == indices).mean() > 0.999  # but for ties in the last bit
    assert np.array_equal(kmeans(values, 8), indices)
    assert np.array_equal(kmeans(np.array([1.0, 2.0, 4.0], np.float32), 256), [0, 85, 255])


def test_a_layer_has_as_many_values_as_its_bits_name() -> None:
    model = tiny()
    before = {name: m.weight.detach().clone() for name, m in model.named_modules() if hasattr(m, "weight")}
    count = count_parameters(model)
    records = cluster(model, FOUR)
    assert count_parameters(model) == count_parameters(plain(model)) == count
    assert all(count <= 2 ** records[name].bits for name, count in num_values(model).items())
    assert [record.bits for record in records.values()] == [8, 4, 4, 4, 8]
    for name, record in records.items():
        layer = model.get_submodule(name)
        lost = F.mse_loss(torch.as_tensor(layer.weight), before[name]).detach()
        assert float(lost / before[name].square().mean()) ** 0.5 == pytest.approx(record.error, rel=1e-4)
        assert record.error < (0.2 if record.bits == 4 else 0.02)


def test_more_bits_lose_less() -> None:
    errors = [cluster(tiny(), ClusterConfig(bits, 8, False))["3"].error for bits in range(1, 9)]
    assert all(more < less for less, more in itertools.pairwise(errors))


def test_training_moves_the_values_and_not_who_shares_them() -> None:
    model = tiny()
    cluster(model, FOUR)
    before = {name: (book.clone(), indices.clone()) for name, (book, indices) in codebooks(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = [step(model.train(), optimizer) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(count <= (256 if name in ("0", "14") else 16) for name, count in num_values(model).items())
    for name, (book, indices) in codebooks(model).items():
        assert torch.equal(indices, before[name][1])
        assert not torch.equal(book, before[name][0])


def test_a_step_is_the_step_of_the_weights_as_far_as_they_can_share_it() -> None:
    layer = nn.Linear(30, 20, bias=False)
    share_weights(layer, 4)
    free = nn.Linear(30, 20, bias=False)
    free.weight.data.copy_(layer.weight)
    given, wanted = torch.randn(16, 30), torch.randn(16, 20)
    for network in (layer, free):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        F.mse_loss(network(given), wanted).backward()
        optimizer.step()
    (_, indices) = codebooks(layer)[""]
    for k in range(4):
        mean = free.weight[indices == k].mean()
        torch.testing.assert_close(layer.weight[indices == k], mean.expand(int((indices == k).sum())))


def test_the_network_that_was_given_stays_when_a_plain_copy_is_made() -> None:
    model = tiny()
    cluster(model, FOUR)
    before = logits(model)
    baked = plain(model)
    assert not codebooks(baked)
    assert torch.equal(logits(baked), before)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(copy.deepcopy(model)), before)


def test_a_checkpoint_rebuilds_the_values(tmp_path: Path) -> None:
    model = resnet18()
    cluster(model, FOUR)
    again = restored(saved(tmp_path, model, changes(model)))
    assert torch.equal(logits(again), logits(model))
    assert codebooks(again).keys() == codebooks(model).keys()


def test_what_changes_weights_must_come_before() -> None:
    model = tiny()
    cluster(model, FOUR)
    config = PruneConfig("l2", "macs", 0.5, "global", 8, 0.9, 1, None, 1, None)
    with pytest.raises(LabError, match=r"prune before it, as in stages=\[prune,factorise,cluster"):
        prune(model, SIZE, config, [], 0)
    with pytest.raises(LabError, match="cluster before it"):
        cluster(model, FOUR)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny()
    nn.init.constant_(model.get_parameter("3.weight"), torch.inf)
    with pytest.raises(LabError, match=r"not finite before cluster, such as 3\.weight"):
        cluster(model, FOUR)
    assert not codebooks(model)


@pytest.mark.parametrize("bits", range(1, 9))
def test_indices_are_packed_without_loss(bits: int) -> None:
    indices = np.random.default_rng(0).integers(0, 2**bits, size=(3, 7), dtype=np.uint8)
    data = pack(indices, bits)
    assert len(data) == (21 * bits + 7) // 8
    assert np.array_equal(unpack(data, 21, bits), indices.ravel())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an exported network whose weights are shared, as FP32 and as two files."""
    folder = tmp_path_factory.mktemp("shared")
    model = tiny()
    cluster(model, FOUR)
    export_onnx(model, SPEC, folder / "fp32.onnx")
    assert compare_onnx(model, folder / "fp32.onnx", [images().numpy()]).relative_error < 1e-5
    for deflate in (False, True):
        record = write_shared_weights(
            model, folder / "fp32.onnx", folder / ("small" if deflate else "plain"), deflate
        )
        assert record.ratio == record.fp32_bytes / record.file_bytes
    return folder


@pytest.mark.parametrize("name", ["plain", "small"])
def test_the_file_gives_back_every_weight_of_the_onnx_file(written: Path, name: str) -> None:
    tensors = read_shared_weights(written / name)
    expected = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in onnx.load(written / "fp32.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert tensors.keys() == expected.keys()
    assert len(tensors) == 10
    for key, value in expected.items():
        assert tensors[key].dtype == np.float32
        assert np.array_equal(tensors[key], value), key


def test_a_channel_keeps_its_own_scale(written: Path) -> None:
    weight = read_shared_weights(written / "plain")["3.weight"]
    assert len(np.unique(weight)) > 100
    assert all(len(np.unique(channel)) <= 16 for channel in weight)


def test_the_file_is_small(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 128, 3, bias=False), nn.BatchNorm2d(128),
        nn.Conv2d(128, 128, 3, bias=False), nn.BatchNorm2d(128), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(128, 10),
    )  # fmt: skip
    model.eval()
    cluster(model, FOUR)
    export_onnx(model, SPEC, tmp_path / "fp32.onnx")
    record = write_shared_weights(model, tmp_path / "fp32.onnx", tmp_path / "w", False)
    assert 6 < record.ratio < 8
    assert write_shared_weights(model, tmp_path / "fp32.onnx", tmp_path / "z", True).ratio > record.ratio


@pytest.mark.parametrize("name", ["plain", "small"])
def test_a_damaged_file_is_refused(written: Path, tmp_path: Path, name: str) -> None:
    whole = (written / name).read_bytes()
    file = tmp_path / "w"
    header = whole.index(b"\n")
    places = [5, header // 2, header + 30, len(whole) // 2, len(whole) - 1]
    damaged = [whole[:cut] for cut in (0, 10, header, header + 1, len(whole) - 1)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    damaged += [whole + b"\0", b"\xff\xfe\n" + whole, b"[]\n" + whole]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(LabError, match=r"another copy of it|this edgelab reads"):
            read_shared_weights(file)
    with pytest.raises(LabError, match="cannot be read"):
        read_shared_weights(tmp_path / "none")


def test_a_file_of_a_later_version_is_refused(written: Path, tmp_path: Path) -> None:
    first, _, rest = (written / "plain").read_bytes().partition(b"\n")
    head = json.loads(first) | {"version": 2}
    (tmp_path / "w").write_bytes(json.dumps(head).encode() + b"\n" + rest)
    with pytest.raises(LabError, match="version 2, this edgelab reads 1"):
        read_shared_weights(tmp_path / "w")


def test_a_network_without_codebooks_has_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="stage `cluster` before"):
        write_shared_weights(tiny(), tmp_path / "fp32.onnx", tmp_path / "w", True)
    assert list(tmp_path.iterdir()) == []


REBUILD = """
import sys, torch
from pathlib import Path
from tests.compressed import logits, restored
torch.save(logits(restored(Path(sys.argv[1]))), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("stages", ["factorise,finetune", "factorise,cluster,finetune"])
def test_a_chain_is_trained_on_and_rebuilt_by_another_process(tmp_path: Path, stages: str) -> None:
    data = [f"data.root={tmp_path / 'images'}", f"data.cache_dir={tmp_path / 'cache'}"]
    small = ["model=resnet18", "model.stem=small", "epochs=1", "optim.warmup_epochs=0"]
    run(load("train", TrainConfig, [*TINY, *small, *data, f"run_dir={tmp_path / 'run'}"]))
    settings = [
        f"checkpoint={tmp_path / 'run' / 'checkpoint.pt'}", f"stages=[{stages}]", "latency.seconds=0",
        "finetune.epochs=1", "factorise.energy=0.6",
    ]  # fmt: skip
    config = load("optimize", OptimizeConfig, settings)
    records = run_chain(config, lambda line: None)
    names = stages.split(",")
    folders = [tmp_path / "run" / "optimize" / f"{n + 1}-{name}" for n, name in enumerate(names)]
    last = folders[-1] / "checkpoint.pt"
    model = restored(last)
    if "factorise" in names:
        assert records[-1].macs < records[0].macs
    if "cluster" in names:
        assert max(num_values(model).values()) <= 256
        assert sorted(num_values(model).values())[-3] <= 16
        before, after = (load_checkpoint(folder / "checkpoint.pt").weights for folder in folders[-2:])
        books = [key for key in before if key.endswith("original")]
        assert any(not torch.equal(before[key], after[key]) for key in books)
        assert all(torch.equal(before[key], after[key]) for key in before if key.endswith("indices"))
        assert records[-1].found["shared_weights"]["ratio"] > 6
        shared = read_shared_weights(folders[-1] / "weights.shared")
        exported = onnx.load(folders[-1] / "fp32.onnx").graph.initializer
        assert all(
            np.array_equal(shared[t.name], numpy_helper.to_array(t)) for t in exported if t.name in shared
        )
    done = python("-c", REBUILD, str(last), str(tmp_path / "logits.pt"))
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(model), rtol=0, atol=0)
    said: list[str] = []
    assert run_chain(config, said.append) == records
    assert not [line for line in said if line.endswith("...")], "a stage ran again"


@pytest.mark.slow
def test_a_killed_finetuning_of_shared_values_goes_on_bit_for_bit(tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path)
    ours = opened(run_dir)
    cluster_stage(run_dir / "checkpoint.pt", tmp_path / "cluster", ours)
    source = tmp_path / "cluster" / "checkpoint.pt"
    finetune(source, tmp_path / "whole", ours)
    killed("inside", "killed", "finetune", source, tmp_path / "killed", settings(run_dir))
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pt").progress.step == 4
    finetune(source, tmp_path / "killed", ours)
    whole = tmp_path / "whole" / "checkpoint.pt"
    assert different_tensors(tmp_path / "killed" / "checkpoint.pt", whole) == []
    assert any(name.endswith(".indices") for name in load_checkpoint(whole).model)
