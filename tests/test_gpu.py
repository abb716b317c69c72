"""What only a GPU can show: DALI's decoding there, bf16, NCCL, and a run that continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from configs.load import load
from configs.schema import TrainConfig
from data.build import build_loader
from data.plan import EvalPlan, TrainPlan
from data.prepare import Splits, input_spec, prepare
from tests.processes import torchrun
from train.run import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("gpu")
    return [
        "data=synthetic", "data.num_classes=4", "data.num_train=256", "data.num_val=64",
        f"data.root={folder / 'images'}", f"data.cache_dir={folder / 'cache'}",
        "batch_size=32", "epochs=8", "log_every=4", "optim.lr=0.02",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def splits(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return prepare(load("train", TrainConfig, overrides).data, tmp_path_factory.mktemp("report"))


AUGMENTED = ["data.augment.randaugment.num_ops=2", "data.augment.erasing.probability=0.5"]


@pytest.mark.parametrize(
    ("trains", "more", "most"),
    [(False, [], 1.0), (True, [], 1.0), (True, AUGMENTED, 4.0)],
    ids=["evaluation", "training", "augmented"],
)
def test_the_gpu_decodes_what_the_cpu_decodes(
    overrides: list[str],
    splits: Splits,
    trains: bool,
    more: list[str],
    most: float,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("data.dali_stream.MILD", 0.0)  # the GPU filters each crop that it shrinks
    config = load("train", TrainConfig, [*overrides, *more])
    spec = input_spec(config.data, splits.train.class_names)
    batches = []
    for device in (torch.device("cuda", 0), torch.device("cpu")):
        plan = (
            TrainPlan(
                splits.train, spec, config.data.augment, batch_size=32, accumulate=1, rank=0, world=1, seed=0
            )
            if trains
            else EvalPlan(splits.val, spec, batch_size=32, rank=0, world=1)
        )
        loader = build_loader(config.loader, plan, spec, device, channels_last=True)
        batch = next(iter(loader))
        assert batch.images.device == device == batch.labels.device
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        batches.append(batch.images.cpu())
        loader.close()
    levels = (batches[0] - batches[1]).abs() * 255 * torch.tensor(spec.std)[:, None, None]
    # nvJPEG's inverse DCT and, of crops, its upsampling of the colours are not libjpeg-turbo's.
    assert levels.mean() < most
    assert "WARNING" not in capfd.readouterr().err  # DALI's word for what it leaves to the CPU
    print(f"{levels.mean():.3f} grey levels from the CPU's")


def test_a_batch_that_the_gpu_has_yet_to_read_is_not_overwritten(
    overrides: list[str], splits: Splits
) -> None:
    config = load("train", TrainConfig, overrides)
    spec = input_spec(config.data, splits.train.class_names)
    plan = TrainPlan(
        splits.train, spec, config.data.augment, batch_size=32, accumulate=1, rank=0, world=1, seed=0
    )
    sums = []
    for late in (False, True):
        loader = build_loader(config.loader, plan, spec, torch.device("cuda", 0), channels_last=True)
        found = []
        for batch in loader:
            if late:
                torch.cuda._sleep(100_000_000)  # some 50 ms, in which the loader runs ahead
            found.append(batch.images.double().sum())
            del batch
        sums.append([float(value) for value in found])
        loader.close()
    assert sums[0] == sums[1]


def test_a_run_learns_and_continues(overrides: list[str], tmp_path: Path) -> None:
    first = [*overrides, f"run_dir={tmp_path / 'run'}", "strategy=single"]
    metrics = run(load("train", TrainConfig, first))
    assert metrics["top1"] > 0.5
    assert run(load("train", TrainConfig, [*first, "resume=true"])) == metrics


def test_nccl_under_torchrun(overrides: list[str], tmp_path: Path) -> None:
    count = torch.cuda.device_count()
    done = torchrun(count, "-m", "train", *overrides, f"run_dir={tmp_path / 'run'}", "strategy=ddp")
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["top1"] > 0.5
    assert f"over {count} rank(s) on cuda in bf16" in done.stderr
