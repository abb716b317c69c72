"""An object store and its failures: a real S3 server in a process of its own, and a proxy that fails."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.images import DataConfig, ImageFolderConfig, LoaderConfig, StorageConfig, WriteShardsConfig
from configs.load import load
from configs.schema import TrainConfig
from data.build import build_loader
from data.fetch import fetch, is_plain, is_url, parse_address, stored_size, upload
from data.index import Index, Shard
from data.loader import Batch
from data.plan import EvalPlan, Plan, TrainPlan
from data.prepare import input_spec, prepare
from data.reader import reader_of
from data.shard_cache import ShardCache
from data.shards import write_shards
from deploy.errors import LabError
from tests.pictures import save
from tests.processes import ROOT, environment, python

both = pytest.mark.parametrize("name", ["dali", "torch"])
kinds = pytest.mark.parametrize("kind", ["objects", pytest.param("shards", marks=pytest.mark.slow)])
FAULTS = ("503", "slow", "drop", "short")
STORAGE = StorageConfig(
    retries=2, backoff_s=0.001, timeout_s=20.0, concurrency=4, cache_gib=1.0, shuffle_shards=2
)


@dataclass
class Store:
    """The server, and the proxy before it, which the addresses go through."""

    proxy: subprocess.Popen[str]
    root: str

    def arm(self, fault: str, count: int, suffix: str = "") -> None:
        assert self.tell(f"{fault} {count} {suffix}") == "ok"

    def tell(self, line: str) -> str:
        assert self.proxy.stdin is not None
        assert self.proxy.stdout is not None
        self.proxy.stdin.write(line + "\n")
        self.proxy.stdin.flush()
        return self.proxy.stdout.readline().strip()


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    for module in ("moto", "s3fs"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}: pip install s3fs 'moto[server]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)],
        env=environment(keys), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert moto.stderr is not None
    for line in moto.stderr:  # it says when it is ready
        if "Running on" in line:
            break
    # It logs each request, and would wait for ever once the pipe is full.
    threading.Thread(target=moto.stderr.read, daemon=True).start()
    proxy = subprocess.Popen(
        [sys.executable, "-m", "tests.fault_proxy", str(port)],
        cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert proxy.stdout is not None
    patch = pytest.MonkeyPatch()
    try:
        endpoint = f"http://127.0.0.1:{int(proxy.stdout.readline())}"
        for key, value in {**keys, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(key, value)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT")).close()
        yield Store(proxy, "s3://bucket")
    finally:
        patch.undo()
        for process in (proxy, moto):
            process.kill()
            process.wait()


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    server.arm("none", 0)
    yield server
    server.arm("none", 0)


@dataclass(frozen=True)
class Sets:
    """The same images as files, as objects and as shards in the store, with their configs."""

    files: ImageFolderConfig
    objects: ImageFolderConfig
    shards: DataConfig


@pytest.fixture(scope="module")
def sets(server: Store, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    at = tmp_path_factory.mktemp("store")
    server.arm("none", 0)
    for split, count in (("train", 14), ("val", 5)):
        for n in range(count):
            path = save(at / "photos" / split / "ab"[n % 2] / f"{n}.png", 160, 170 + n, seed=n)
            upload(path, f"{server.root}/{path.relative_to(at)}", STORAGE)
    path = save(at / "photos" / "val" / "b" / "turned, cmyk.jpg", 120, 88, mode="CMYK", orientation=6)
    upload(path, f"{server.root}/{path.relative_to(at)}", STORAGE)

    def config(*overrides: str) -> Any:
        data = load(
            "train", TrainConfig, [*overrides, f"data.cache_dir={at}/cache", "data.input.size=64"]
        ).data
        return replace(data, storage=STORAGE)

    files = config("data=image_folder", f"data.root={at}/photos")
    objects = config("data=image_folder", f"data.root={server.root}/photos")
    shards = config("data=shards", f"data.root={server.root}/shards")
    # From the store to the store; sets of a quarter MiB would need a smaller unit, so it is dealt by hand.
    write = WriteShardsConfig(out=f"{server.root}/shards", shard_mib=1, seed=0, data=objects)
    write_shards(write, prepare(objects, at), print)
    return Sets(files, objects, shards)


def spec_of(data: DataConfig) -> Any:
    return input_spec(data, ("a", "b"))


def train_plan(data: DataConfig, index: Index) -> TrainPlan:
    return TrainPlan(
        index,
        spec_of(data),
        data.augment,
        batch_size=4,
        accumulate=1,
        rank=0,
        world=1,
        seed=1,
        shuffle_shards=1,
    )


def epoch_of(name: str, plan: Plan, data: DataConfig, position: int = 0) -> list[Batch]:
    choice = LoaderConfig(name=name, threads=1, prefetch=1)  # type: ignore[arg-type]
    loader = build_loader(choice, plan, spec_of(data), torch.device("cpu"), data=data)
    loader.load_state_dict({"position": position, "num_steps": len(plan)})
    try:
        return list(loader)
    finally:
        loader.close()


def assert_equal(got: list[Batch], expected: list[Batch]) -> None:
    assert len(got) == len(expected) > 0
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


def fresh(data: DataConfig, folder: Path) -> DataConfig:
    """With an empty cache, so that everything is downloaded anew."""
    return replace(data, cache_dir=str(folder))


@both
def test_the_store_gives_the_batches_of_the_disk(store: Store, sets: Sets, tmp_path: Path, name: str) -> None:
    local, remote = prepare(sets.files, tmp_path), prepare(sets.objects, tmp_path)
    assert all(map(is_url, remote.train.paths))
    assert [is_plain(path) for path in remote.val.paths].count(True) == 1  # the converted copy
    assert local.train.labels.tolist() == remote.train.labels.tolist()
    expected = epoch_of(name, train_plan(sets.files, local.train), sets.files)
    got = epoch_of(name, train_plan(sets.objects, remote.train), sets.objects)
    assert_equal(got, expected)
    assert_equal(epoch_of(name, train_plan(sets.objects, remote.train), sets.objects, 1), expected[1:])


def test_both_loaders_evaluate_shards_and_objects_of_a_store_as_files(
    store: Store, sets: Sets, tmp_path: Path
) -> None:
    """In the order of the shards, whose images are found among the files by their content."""
    data = fresh(sets.shards, tmp_path / "cache")
    local, remote, shards = (prepare(d, tmp_path).val for d in (sets.files, sets.objects, data))
    row_of = {Path(path).read_bytes(): row for row, path in enumerate(local.paths)}
    reader = reader_of(data, shards)
    rows = torch.tensor([row_of[reader.read(path)] for path in shards.paths]).numpy()
    assert sorted(rows.tolist()) == list(range(6))
    pixels = {}
    for name in ("dali", "torch"):
        plans = [
            (EvalPlan(index, spec_of(data), batch_size=6, rank=0, world=1), given)
            for index, given in (
                (shards, data), (remote.take(rows), sets.objects), (local.take(rows), sets.files)
            )
        ]  # fmt: skip
        one, two, three = (epoch_of(name, plan, given) for plan, given in plans)
        assert_equal(one, three)
        assert_equal(two, three)
        pixels[name] = one[0].images
    assert (pixels["dali"] - pixels["torch"]).abs().max() < 0.01 * 4.5 / 255  # a hundredth of a grey level


@both
@pytest.mark.parametrize("fault", FAULTS)
@kinds
def test_failures_below_the_limit_change_nothing(
    store: Store, sets: Sets, tmp_path: Path, name: str, fault: str, kind: str
) -> None:
    data = fresh(sets.objects if kind == "objects" else sets.shards, tmp_path / "cache")
    index = prepare(data, tmp_path).train
    plan = train_plan(data, index)
    expected = epoch_of(name, plan, data)
    quick = replace(STORAGE, timeout_s=1.0 if fault == "slow" else STORAGE.timeout_s)
    data = replace(fresh(data, tmp_path / "empty"), storage=quick)
    store.arm(fault, 2)
    got = epoch_of(name, plan, data)
    assert int(store.tell("count")) >= 3  # the failures were met
    assert_equal(got, expected)


@both
@pytest.mark.parametrize(
    ("fault", "said"),
    [("503", "Service Unavailable"), ("slow", "Timeout"), ("drop", "Payload|Incomplete|Response"),
     ("short", r"\d+ bytes came in place of \d+")],
)  # fmt: skip
@kinds
def test_failures_beyond_the_limit_are_one_error(
    store: Store, sets: Sets, tmp_path: Path, name: str, fault: str, said: str, kind: str
) -> None:
    data = fresh(sets.objects if kind == "objects" else sets.shards, tmp_path / "cache")
    index = prepare(data, tmp_path).train
    quick = replace(STORAGE, timeout_s=0.3 if fault == "slow" else STORAGE.timeout_s)
    store.arm(fault, 10**6)
    with pytest.raises(LabError, match=said) as caught:
        epoch_of(name, train_plan(data, index), replace(data, storage=quick))
    message = str(caught.value)
    assert "s3://bucket/" in message
    assert "tried 3 time(s)" in message
    assert "data.storage.retries=2" in message
    assert "Traceback" not in message


def test_a_failing_store_is_no_finding_about_an_image(store: Store, sets: Sets, tmp_path: Path) -> None:
    data = replace(fresh(sets.objects, tmp_path / "cache"), on_bad="quarantine")
    store.arm("503", 10**6)
    with pytest.raises(LabError, match=r"tried 3 time\(s\)"):
        prepare(data, tmp_path)


def test_a_check_is_remembered_by_what_the_store_says(store: Store, sets: Sets, tmp_path: Path) -> None:
    given = replace(sets.objects, root="s3://bucket/changing", val_fraction=0.5)
    data = fresh(given, tmp_path / "cache")
    for n in range(4):
        photo = save(tmp_path / f"{n}.png", 50, 60, seed=n)
        upload(photo, f"s3://bucket/changing/{'ab'[n % 2]}/{n}.png", STORAGE)
    first = prepare(data, tmp_path)
    store.arm("none", 0)
    assert prepare(data, tmp_path).train.paths == first.train.paths
    assert store.tell("count") == "0"  # no image was read again
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[:-30] + bytes(30))  # as long as before
    upload(tmp_path / "0.png", "s3://bucket/changing/a/0.png", STORAGE)
    with pytest.raises(LabError, match=r"1 of 4 images cannot be read:\n  - s3://bucket/changing/a/0.png"):
        prepare(data, tmp_path)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://no-such-bucket/photos", "no such bucket"),
        ("s3://bucket/no/such/prefix", "no such bucket, or nothing below that prefix; give the address"),
        ("nostore://x/y", "no store of that kind is known"),
    ],
)
def test_a_place_that_is_not_there_is_refused(
    store: Store, sets: Sets, tmp_path: Path, root: str, message: str
) -> None:
    with pytest.raises(LabError, match=message):
        prepare(replace(sets.objects, root=root), tmp_path)


def test_a_set_of_shards_that_is_not_there_is_refused(store: Store, sets: Sets, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"s3://bucket/none/manifest.json: there is no such bucket or object"):
        prepare(replace(sets.shards, root="s3://bucket/none"), tmp_path)


def test_missing_credentials_are_named(store: Store, tmp_path: Path) -> None:
    code = (
        "from tests.test_stores import STORAGE, fetch, LabError\n"
        "try:\n    fetch('s3://bucket/x', STORAGE)\nexcept LabError as error:\n    print(error)"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=env | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert "no credentials were found" in done.stdout, done.stdout + done.stderr
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stdout


def test_a_missing_backend_is_named() -> None:
    done = python(
        "-c",
        "import sys\nsys.modules['s3fs'] = None\nfrom tests.test_stores import STORAGE, fetch, LabError\n"
        "try:\n    fetch('s3://bucket/x', STORAGE)\nexcept LabError as error:\n    print(error)",
    )
    assert done.stdout.strip().endswith("pip install s3fs"), done.stdout + done.stderr


def test_shards_in_a_store_are_written_the_same_after_a_kill(
    store: Store, sets: Sets, tmp_path: Path
) -> None:
    overrides = [
        "data=image_folder", f"data.root={sets.files.root}", f"data.cache_dir={tmp_path}",
        "data.input.size=64", "shard_mib=1", "out=s3://bucket/killed",
    ]  # fmt: skip
    kill = f"""
import os, signal, sys
from data.output import Output
publish = Output.publish
def killed(self, path, name):
    if name == "val-000000.tar":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(self, path, name)
Output.publish = killed
from data.shards import WriteShardsConfig, run_command, write
sys.argv[1:] = {overrides!r}
run_command("shards", WriteShardsConfig, write)
"""
    assert python("-c", kill).returncode == -signal.SIGKILL
    with pytest.raises(LabError, match="no such bucket or object"):
        stored_size("s3://bucket/killed/manifest.json", STORAGE)
    done = python("-m", "data.shards", *overrides)
    assert done.returncode == 0, done.stderr
    assert "shards of an earlier start kept" in done.stdout
    for name in ("train-000000.tar", "train-000000.idx", "val-000000.tar", "manifest.json"):
        assert fetch(f"s3://bucket/killed/{name}", STORAGE) == fetch(f"s3://bucket/shards/{name}", STORAGE)


def shard_of(url: str, content: bytes, tmp_path: Path) -> Shard:
    from hashlib import sha256

    (tmp_path / "shard").write_bytes(content)
    upload(tmp_path / "shard", url, STORAGE)
    return Shard(url, len(content), sha256(content).hexdigest())


def test_the_cache_goes_on_with_a_torn_download(store: Store, tmp_path: Path) -> None:
    content = os.urandom(20 << 20)
    shard = shard_of("s3://bucket/cache/big.tar", content, tmp_path)
    cache = ShardCache(tmp_path / "cache", STORAGE)
    (tmp_path / "cache").mkdir()
    part = cache.path(shard).with_name(cache.path(shard).name + ".part")
    part.write_bytes(content[: 15 << 20])
    store.arm("none", 0)
    held = cache.hold(shard)
    assert store.tell("count") == "1"  # the last 5 MiB
    assert os.pread(held.fd, len(content), 0) == content
    assert not part.exists()


def test_a_download_that_is_not_the_manifests_is_refused(store: Store, tmp_path: Path) -> None:
    shard = shard_of("s3://bucket/cache/other.tar", b"x" * 1000, tmp_path)
    cache = ShardCache(tmp_path / "cache", STORAGE)
    with pytest.raises(LabError, match=r"other.tar: its SHA-256 is .* downloaded 3 time\(s\): write"):
        cache.hold(replace(shard, sha256="0" * 64))
    assert {path.suffix for path in cache.folder.iterdir()} == {".lock", ".download"}


def test_the_least_recently_used_goes_and_none_in_use(store: Store, tmp_path: Path) -> None:
    shards = [shard_of(f"s3://bucket/cache/{n}.tar", os.urandom(1000), tmp_path) for n in range(4)]
    cache = ShardCache(tmp_path / "cache", replace(STORAGE, cache_gib=2500 / 2**30))
    held = cache.hold(shards[0])
    for shard in shards[1:]:
        cache.hold(shard)
    present = [cache.path(shard).exists() for shard in shards]
    assert present == [True, False, False, True]
    del held
    cache.hold(shards[1])
    assert [cache.path(shard).exists() for shard in shards] == [False, True, False, True]


def test_processes_share_one_download(store: Store, tmp_path: Path) -> None:
    shard = shard_of("s3://bucket/cache/shared.tar", os.urandom(1 << 20), tmp_path)
    code = (
        "from pathlib import Path\nfrom data.index import Shard\nfrom data.shard_cache import ShardCache\n"
        f"from tests.test_stores import STORAGE\nShardCache(Path({str(tmp_path / 'cache')!r}), "
        f"STORAGE).hold({shard!r})"
    )
    store.arm("none", 0, "shared.tar")
    processes = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment()) for _ in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert store.tell("count") == "1"


def test_a_cache_that_cannot_hold_a_group_is_refused(store: Store, sets: Sets, tmp_path: Path) -> None:
    data = replace(sets.shards, storage=replace(STORAGE, cache_gib=1e-6))
    with pytest.raises(LabError, match=r"data.storage.cache_gib=1e-06 is less than .* raise it, or lower"):
        prepare(data, tmp_path)


def test_an_address_may_name_a_part() -> None:
    assert parse_address("s3://b/a#1.tar#512+9").file == "s3://b/a#1.tar"
    assert parse_address("/a/b#3.jpg").length is None
    assert is_plain("/a/b#3.jpg")
    assert not is_plain("/a/b.tar#512+9")
    assert not is_plain("gs://a/b.jpg")
