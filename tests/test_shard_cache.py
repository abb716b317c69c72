"""Shards on the local disk: shared by all who read them, and downloaded ahead of use."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from configs.images import StorageConfig
from data.index import Shard
from data.shard_cache import Held, ShardCache, ShardsAhead

SHARDS = tuple(Shard(f"s3://bucket/{number}.tar", 100, str(number) * 64) for number in range(3))


class Plan:
    """Six batches an epoch of one image each, two in a shard; knows which were asked for."""

    index = SimpleNamespace(shards=SHARDS, paths=[f"{shard.file}#{n}" for shard in SHARDS for n in range(2)])

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.asked = threading.Semaphore(0)

    def __len__(self) -> int:
        return 6

    def at(self, position: int) -> Any:
        self.positions.append(position)
        self.asked.release()
        return SimpleNamespace(rows=np.array([position % 6]))

    def wait(self, count: int) -> None:
        for _ in range(count):
            assert self.asked.acquire(timeout=30)


STORAGE = StorageConfig(
    retries=0, backoff_s=0.001, timeout_s=1.0, concurrency=1, cache_gib=1.0, shuffle_shards=1
)


class Cache:
    storage = STORAGE

    def __init__(self) -> None:
        self.held: list[str] = []

    def hold(self, shard: Shard) -> object:
        self.held.append(shard.file)
        return object()


def test_it_looks_an_epoch_ahead_and_ends_with_its_loader() -> None:
    plan, cache = Plan(), Cache()
    parts: Any = plan, 0, cache
    ahead = ShardsAhead(*parts)
    plan.wait(6)
    ahead.used(1)
    plan.wait(1)
    ahead.close()
    thread = ahead._thread
    thread.join(30)
    assert not thread.is_alive()
    assert plan.positions == [*range(7)]
    assert cache.held == [shard.file for shard in SHARDS]


def test_readers_that_come_at_once_need_not_wait_for_each_others_end(tmp_path: Path) -> None:
    """A batch is whole only when each of its readers has the shard, and none lets go of it before."""
    file = tmp_path / "train.tar"
    file.write_bytes(bytes(1000))
    shard = Shard(f"file://{file}", 1000, hashlib.sha256(bytes(1000)).hexdigest())
    batch: list[Held] = []
    readers = [
        threading.Thread(
            target=lambda: batch.append(ShardCache(tmp_path / "cache", STORAGE).hold(shard)), daemon=True
        )
        for _ in range(4)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert len(batch) == 4
