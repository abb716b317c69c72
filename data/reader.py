"""The encoded bytes of any image of an index, and those of a plan ahead of their use."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tarfile import BLOCKSIZE, TarError, TarInfo

from configs.images import DataConfig, StorageConfig
from data.fetch import fetch, is_plain, is_url, parse_address
from data.index import Index, Shard
from data.plan import BatchPlan, Plan
from data.shard_cache import Held, ShardCache
from deploy.errors import LabError


class _Local:
    """An open local shard."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.fd)


class Reader:
    """Bytes by address, from any thread and, after a fork, from any process."""

    def __init__(
        self, storage: StorageConfig | None = None, cache_dir: Path = Path(), shards: Sequence[Shard] = ()
    ) -> None:
        """`storage` is None where all files are local."""
        self._storage = storage
        self._shards = {shard.file: shard for shard in shards}
        self.threads = storage.concurrency if storage else 4
        self.cache = ShardCache(cache_dir / "shards", storage) if storage else None
        self._forget()

    def read(self, address: str) -> bytes:
        """Raises LabError where a store fails or a shard is not what its manifest says; OSError where a
        local file cannot be read."""
        at = parse_address(address)
        if at.file in self._shards:
            assert at.length is not None
            return self._member(self._shards[at.file], at.offset, at.length)
        if is_url(at.file):
            assert self._storage is not None, f"{address} is read without a config of the storage"
            return fetch(address, self._storage)
        return Path(at.file).read_bytes()

    def read_all(self, addresses: Sequence[str]) -> list[bytes]:
        """`threads` at a time."""
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(self.read, addresses))

    def _member(self, shard: Shard, offset: int, length: int) -> bytes:
        opened = self._open(shard)  # kept by name: another thread may let go of it meanwhile
        content = os.pread(opened.fd, BLOCKSIZE + length, offset - BLOCKSIZE)
        try:
            size = TarInfo.frombuf(content[:BLOCKSIZE], "utf-8", "strict").size
        except TarError:
            size = -1
        if size != length or len(content) != BLOCKSIZE + length:
            raise LabError(
                f"{shard.file}: no member of {length} bytes begins at {offset}, where its manifest has one: "
                "write the shards anew with python -m data.shards"
            )
        return content[BLOCKSIZE:]

    def _open(self, shard: Shard) -> Held | _Local:
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            if shard.file in self._opened:
                self._opened.move_to_end(shard.file)
                return self._opened[shard.file]
        if is_url(shard.file):
            assert self.cache is not None
            opened: Held | _Local = self.cache.hold(shard)
        else:
            opened = _Local(shard.file)
        with self._lock:
            self._opened[shard.file] = opened
            # One that is open cannot be evicted, so those of an earlier group are let go.
            while len(self._opened) > (self._storage.shuffle_shards + 1 if self._storage else 1):
                self._opened.popitem(last=False)
        return opened

    def _forget(self) -> None:
        """In a new process: another's locks and open shards are not ours."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._opened: OrderedDict[str, Held | _Local] = OrderedDict()


LOCAL = Reader()
"""For whole local files."""


def reader_of(data: DataConfig, index: Index) -> Reader:
    return Reader(data.storage, Path(data.cache_dir), index.shards)


class ReadAhead:
    """The batches of a plan with the bytes of their images, `depth` batches ahead."""

    def __init__(self, plan: Plan, position: int, reader: Reader, depth: int) -> None:
        self._plan = plan
        self._position = position
        self._reader = reader
        self._depth = depth
        self._pool = ThreadPoolExecutor(reader.threads)
        self._ahead: deque[tuple[BatchPlan, list[Future[bytes]]]] = deque()

    def next(self) -> tuple[BatchPlan, list[bytes]]:
        while len(self._ahead) <= self._depth:
            batch = self._plan.at(self._position)
            paths = [self._plan.index.paths[row] for row in batch.rows]
            self._ahead.append((batch, [self._pool.submit(self._reader.read, path) for path in paths]))
            self._position += 1
        batch, contents = self._ahead.popleft()
        return batch, [content.result() for content in contents]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def local_copies(index: Index, reader: Reader, folder: Path) -> Index:
    """The same images as whole local files: those that are none yet are written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for row, path in enumerate(index.paths):
        if not is_plain(path):
            copy = folder / f"{row:08d}"
            copy.write_bytes(reader.read(path))
            path = str(copy)
        paths.append(path)
    return replace(index, paths=tuple(paths), shards=())
