"""Shards: written the same each time, read by others' readers, refused where they are not as written."""

from __future__ import annotations

import itertools
import json
import signal
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def

from configs.images import LoaderConfig, ShardsConfig, WriteShardsConfig
from configs.load import load
from configs.schema import TrainConfig
from data.build import build_loader
from data.index import Index
from data.loader import Batch
from data.plan import EvalPlan, Plan, TrainPlan
from data.prepare import Splits, input_spec, prepare
from data.reader import reader_of
from data.shard_manifest import MANIFEST
from data.shard_order import order_by_shard, shards_of_rows
from data.shards import write_shards
from deploy.errors import LabError
from tests.pictures import save
from tests.processes import python

both = pytest.mark.parametrize("name", ["dali", "torch"])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> WriteShardsConfig:
    """Photos in three classes that make several shards of 1 MiB, one of them converted."""
    at = tmp_path_factory.mktemp("photos")
    for n in range(36):
        save(at / "photos" / "abc"[n % 3] / f"{n}.png", 200, 220 + n, seed=n)
    save(at / "photos" / "a" / "cmyk.jpg", 90, 80, mode="CMYK")
    overrides = [f"data.root={at}/photos", f"data.cache_dir={at}/cache", "data.val_fraction=0.3"]
    return load(
        "shards",
        WriteShardsConfig,
        ["data=image_folder", *overrides, f"out={at}/out", "shard_mib=1", "data.input.size=64"],
    )


@pytest.fixture(scope="module")
def files(config: WriteShardsConfig) -> Splits:
    return prepare(config.data, Path(config.data.cache_dir))


@pytest.fixture(scope="module")
def written(config: WriteShardsConfig, files: Splits) -> Path:
    write_shards(config, files, print)
    return Path(config.out)


def shards_config(config: WriteShardsConfig, root: Path, cache: Path) -> ShardsConfig:
    data = load("train", TrainConfig, ["data=shards", f"data.root={root}", "data.input.size=64"]).data
    assert isinstance(data, ShardsConfig)
    return replace(data, cache_dir=str(cache))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for name, content in contents(source).items():
        (target / name).write_bytes(content)
    return target


def epoch_of(name: str, plan: Plan, data: Any, position: int = 0) -> list[Batch]:
    spec = input_spec(data, plan.index.class_names)
    choice = LoaderConfig(name=name, threads=1, prefetch=1)  # type: ignore[arg-type]
    loader = build_loader(choice, plan, spec, torch.device("cpu"), data=data)
    loader.load_state_dict({"position": position, "num_steps": len(plan)})
    try:
        return list(loader)
    finally:
        loader.close()


def eval_plan(data: Any, index: Index) -> EvalPlan:
    return EvalPlan(index, input_spec(data, index.class_names), batch_size=4, rank=0, world=1)


def train_plan(data: Any, index: Index, *, rank: int = 0, world: int = 1, window: int = 2) -> TrainPlan:
    spec = input_spec(data, index.class_names)
    return TrainPlan(
        index, spec, data.augment, batch_size=6, accumulate=1, rank=rank, world=world, seed=1,
        shuffle_shards=window,
    )  # fmt: skip


def test_the_same_images_give_the_same_bytes(
    config: WriteShardsConfig, files: Splits, written: Path, tmp_path: Path
) -> None:
    write_shards(replace(config, out=str(tmp_path / "again")), files, print)
    assert contents(tmp_path / "again") == contents(written)
    assert len(list(written.glob("train-*.tar"))) > 2


@pytest.mark.parametrize("moment", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_killed_it_goes_on_to_the_same_bytes(
    config: WriteShardsConfig, files: Splits, written: Path, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"
    overrides = [
        "data=image_folder", f"data.root={config.data.root}", f"data.cache_dir={config.data.cache_dir}",
        "data.val_fraction=0.3", "data.input.size=64", "shard_mib=1", f"out={out}",
    ]  # fmt: skip
    # A process that is killed where the second shard gets its name.
    kill = f"""
import os, signal, sys
from data.output import Output
publish = Output.publish
def killed(self, path, name):
    if name == "train-000001.tar" and {moment == "before"}:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(self, path, name)
    if name == "train-000001.tar":
        os.kill(os.getpid(), signal.SIGKILL)
Output.publish = killed
from data.shards import WriteShardsConfig, run_command, write
sys.argv[1:] = {overrides!r}
run_command("shards", WriteShardsConfig, write)
"""
    assert python("-c", kill).returncode == -signal.SIGKILL
    assert not (out / MANIFEST).exists()
    first = (out / "train-000000.tar").stat().st_ino
    done = python("-m", "data.shards", *overrides)
    assert done.returncode == 0, done.stderr
    assert "1 shards of an earlier start kept" in done.stdout
    assert (out / "train-000000.tar").stat().st_ino == first
    assert contents(out) == contents(written)


def test_a_finished_set_is_not_written_over(config: WriteShardsConfig, files: Splits, written: Path) -> None:
    before = contents(written)
    with pytest.raises(LabError, match="holds a finished set of shards: give another out"):
        write_shards(config, files, print)
    assert contents(written) == before


def test_other_images_do_not_mix_with_unfinished_shards(
    config: WriteShardsConfig, files: Splits, written: Path, tmp_path: Path
) -> None:
    out = copied(written, tmp_path / "out")
    (out / MANIFEST).rename(out / "writing.json")
    (out / "writing.json").write_text('{"inputs": "others", "sha256": {}}')
    with pytest.raises(LabError, match="shards of other images"):
        write_shards(replace(config, out=str(out)), files, print)


def test_a_tar_holds_each_file_as_it_is_with_its_label(files: Splits, written: Path) -> None:
    found = []
    for path in sorted(written.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            read = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]
        names = [member.name.split(".")[0] for member in members]
        assert names[::2] == names[1::2]
        labels = [int(label) for label in read[1::2]]
        assert len(set(labels)) > 1  # a mix of the classes
        found += list(zip(labels, read[::2], strict=True))
    paths = zip(files.train.labels.tolist(), files.train.paths, strict=True)
    assert sorted(found) == sorted((label, Path(path).read_bytes()) for label, path in paths)


def test_dali_reads_them_by_their_index_files(written: Path) -> None:
    @pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def both_parts(tars: list[str], indexes: list[str]) -> Any:
        image, cls = fn.readers.webdataset(  # type: ignore[misc]
            paths=tars, index_paths=indexes, ext=["jpg;png", "cls"], missing_component_behavior="error"
        )
        return image, cls

    tars = sorted(str(path) for path in written.glob("val-*.tar"))
    pipeline = both_parts(tars, [path.replace(".tar", ".idx") for path in tars])
    entries = json.loads((written / MANIFEST).read_text())["splits"]["val"]
    for entry in entries:
        content = (written / entry["name"]).read_bytes()
        for offset, length, label in zip(entry["offsets"], entry["lengths"], entry["labels"], strict=True):
            image, cls = (np.array(part[0]).tobytes() for part in pipeline.run())
            assert image == content[offset : offset + length]
            assert cls == str(label).encode()


@both
def test_evaluation_is_the_same_from_shards_and_from_files(
    config: WriteShardsConfig, files: Splits, written: Path, tmp_path: Path, name: str
) -> None:
    data = shards_config(config, written, tmp_path)
    val = prepare(data, tmp_path).val
    entries = json.loads((written / MANIFEST).read_text())["splits"]["val"]
    content = {path: Path(path).read_bytes() for path in files.val.paths}
    reader = reader_of(data, val)
    same = [
        next(row for row, p in enumerate(files.val.paths) if content[p] == reader.read(q)) for q in val.paths
    ]
    assert sorted(same) == list(range(len(files.val)))
    assert len(entries) > 1
    one = epoch_of(name, eval_plan(data, val), data)
    other = epoch_of(name, eval_plan(data, files.val.take(np.array(same))), data)
    assert len(one) == len(other) == 3
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


@both
def test_a_position_is_all_that_it_takes(
    config: WriteShardsConfig, written: Path, tmp_path: Path, name: str
) -> None:
    data = shards_config(config, written, tmp_path)
    train = prepare(data, tmp_path).train
    straight = epoch_of(name, train_plan(data, train), data)
    resumed = epoch_of(name, train_plan(data, train), data, position=2)
    assert len(resumed) == len(straight) - 2 > 0
    for a, b in zip(resumed, straight[2:], strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_any_multiset_is_arranged_group_by_group(window: int) -> None:
    rng = np.random.default_rng(window)
    shard_of_row = rng.integers(0, 9, 200)
    rows = rng.integers(0, 200, 300)
    ordered = order_by_shard(rows, shard_of_row, window, np.random.default_rng(1))
    assert sorted(ordered.tolist()) == sorted(rows.tolist())
    groups: list[set[int]] = [set()]
    for shard in shard_of_row[ordered].tolist():
        if shard not in groups[-1] and len(groups[-1]) == window:
            groups.append(set())
        groups[-1].add(shard)
    assert sum(map(len, groups)) == len(set(shard_of_row[rows].tolist()))  # none comes back later
    again, other = (order_by_shard(rows, shard_of_row, window, np.random.default_rng(s)) for s in (1, 2))
    assert again.tolist() == ordered.tolist() != other.tolist()


def test_more_ranks_than_shards_share_each_row_once(
    config: WriteShardsConfig, files: Splits, tmp_path: Path
) -> None:
    write_shards(replace(config, out=str(tmp_path / "one"), shard_mib=1000), files, print)
    data = shards_config(config, tmp_path / "one", tmp_path / "cache")
    splits = prepare(data, tmp_path)
    assert len(splits.train.shards) == 1
    alone = train_plan(data, splits.train)
    ranks = [train_plan(data, splits.train, rank=rank, world=3) for rank in range(3)]
    for position in range(2 * len(alone)):
        together = np.concatenate([plan.at(position).rows for plan in ranks])
        assert together.tolist() == alone.at(position).rows.tolist()
    spec = input_spec(data, splits.val.class_names)
    shares = [EvalPlan(splits.val, spec, batch_size=2, rank=rank, world=3) for rank in range(3)]
    batches = [plan.at(step) for plan in shares for step in range(len(plan))]
    assert sorted(row for b in batches for row in b.rows[b.labels >= 0].tolist()) == list(
        range(len(splits.val))
    )


def test_training_needs_a_group_of_shards_at_a_time(
    config: WriteShardsConfig, written: Path, tmp_path: Path
) -> None:
    data = shards_config(config, written, tmp_path)
    train = prepare(data, tmp_path).train
    plan = train_plan(data, train, window=1)
    shards = shards_of_rows(train)
    order = [int(shards[row]) for position in range(len(plan)) for row in plan.at(position).rows]
    changes = 1 + sum(a != b for a, b in itertools.pairwise(order))
    assert changes == len(set(order)) > 2


def test_an_index_keeps_its_shards_on_the_disk(
    config: WriteShardsConfig, written: Path, tmp_path: Path
) -> None:
    train = prepare(shards_config(config, written, tmp_path), tmp_path).train
    train.save(tmp_path / "train.npz")
    again = Index.load(tmp_path / "train.npz")
    assert (again.paths, again.shards) == (train.paths, train.shards)
    assert len(train.shards) > 2


def test_a_shard_is_verified_once_as_long_as_it_does_not_change(
    config: WriteShardsConfig, written: Path, tmp_path: Path
) -> None:
    data = shards_config(config, copied(written, tmp_path / "set"), tmp_path / "cache")
    prepare(data, tmp_path)
    known = (tmp_path / "cache" / "verified.txt").read_text()
    prepare(data, tmp_path)
    assert (tmp_path / "cache" / "verified.txt").read_text() == known
    shard = tmp_path / "set" / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(LabError, match=r"train-000000.tar: its SHA-256 is \w+ and not the manifest's"):
        prepare(data, tmp_path)


def later(manifest: Any) -> None:
    manifest["schema"] = 2


def beyond(manifest: Any) -> None:
    manifest["splits"]["train"][0]["offsets"][3] = 10**9


def another_name(manifest: Any) -> None:
    manifest["splits"]["train"][0]["members"][3] = "stranger.png"


def another_size(manifest: Any) -> None:
    manifest["splits"]["train"][1]["size"] += 512


def another_class(manifest: Any) -> None:
    manifest["splits"]["val"][0]["labels"][0] = 3


def uneven(manifest: Any) -> None:
    manifest["splits"]["val"][0]["labels"].pop()


def without_val(manifest: Any) -> None:
    manifest["splits"]["val"] = []


def outside(manifest: Any) -> None:
    manifest["splits"]["val"][0]["name"] = "../val-000000.tar"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (later, "has schema 2, and this version reads up to 1: update"),
        (
            beyond,
            r"at offset 1000000000 with \d+ bytes is not within the \d+ bytes of train-000000.tar: write",
        ),
        (another_name, r"train-000000.tar has no member stranger.png of \d+ bytes at \d+: write"),
        (another_size, r"train-000001.tar has \d+ bytes and not the manifest's \d+: write"),
        (another_class, "labels beyond the 3 classes: write"),
        (uneven, "differ in length: write"),
        (without_val, "has no val shards: write"),
        (outside, "is no manifest of shards .*: write"),
    ],
)
def test_a_manifest_that_does_not_match_is_refused(
    config: WriteShardsConfig, written: Path, tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    root = copied(written, tmp_path / "set")
    manifest = json.loads((root / MANIFEST).read_text())
    change(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(LabError, match=message):
        prepare(shards_config(config, root, tmp_path / "cache"), tmp_path)


def test_what_is_missing_is_named(config: WriteShardsConfig, written: Path, tmp_path: Path) -> None:
    root = copied(written, tmp_path / "set")
    data = shards_config(config, root, tmp_path / "cache")
    (root / "val-000001.tar").unlink()
    with pytest.raises(LabError, match=r"val-000001.tar is missing, which manifest.json names: copy it"):
        prepare(data, tmp_path)
    (root / MANIFEST).unlink()
    with pytest.raises(LabError, match=r"holds no manifest.json: .* give the same command again"):
        prepare(data, tmp_path)


def test_two_sets_must_have_the_same_classes(
    config: WriteShardsConfig, written: Path, tmp_path: Path
) -> None:
    root = copied(written, tmp_path / "set")
    text = (root / MANIFEST).read_text()
    (root / MANIFEST).write_text(text.replace('["a","b","c"]', '["a","b","d"]'))
    data = replace(shards_config(config, written, tmp_path / "cache"), val_root=str(root))
    with pytest.raises(LabError, match=r"misses \['c'\] and adds \['d'\]"):
        prepare(data, tmp_path)
    (root / MANIFEST).write_text(text)
    assert len(prepare(data, tmp_path).val) == 12
