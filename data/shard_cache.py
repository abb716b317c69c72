"""Shards of an object store on the local disk: downloaded once a machine, verified, evicted when not in use.

Every process of the machine may use one cache folder. Beside each shard, `<name>.lock` is locked by all that
read or download it together and by who evicts it alone, `<name>.download` by who downloads it alone; a lock
ends with its process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from configs.images import StorageConfig
from data.fetch import fetch, part_of
from data.index import Shard
from data.plan import Plan
from deploy.bundle import file_sha256
from deploy.errors import LabError

_PART_BYTES = 8 << 20
_GIB = 1 << 30


class Held:
    """A shard that stays on the disk as long as this object lives."""

    def __init__(self, lock: int, path: Path) -> None:
        self._lock = lock
        self._pid = os.getpid()
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.fd)
        if self._pid == os.getpid():
            # Said and not left to close(): a fork has a copy of the descriptor, which would keep the lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)


@dataclass(frozen=True)
class ShardCache:
    folder: Path
    storage: StorageConfig

    def hold(self, shard: Shard) -> Held:
        """The shard on the local disk, downloaded if it is not there. Raises LabError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(shard)
        lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # From here on nobody evicts it.
            fcntl.flock(lock, fcntl.LOCK_SH)
            if not _is_whole(path, shard):
                with _alone(path):
                    if not _is_whole(path, shard):
                        self._download(shard, path)
            os.utime(path)  # the time of the last use
            return Held(lock, path)
        except BaseException:
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)
            raise

    def path(self, shard: Shard) -> Path:
        """Named by content, so that two sets do not meet and a shard that is written anew is another one."""
        return self.folder / f"{shard.sha256[:16]}-{shard.file.rpartition('/')[2]}"

    def _download(self, shard: Shard, path: Path) -> None:
        self._evict(shard.size, path)
        part = path.with_name(path.name + ".part")
        for number in range(self.storage.retries + 1):
            if number or not part.exists() or part.stat().st_size > shard.size:
                part.unlink(missing_ok=True)
            with part.open("ab") as file, ThreadPoolExecutor(self.storage.concurrency) as pool:
                starts = list(range(file.tell(), shard.size, _PART_BYTES))
                # A round of parts at a time bounds the memory.
                for first in range(0, len(starts), self.storage.concurrency):
                    addresses = [
                        part_of(shard.file, start, min(_PART_BYTES, shard.size - start))
                        for start in starts[first : first + self.storage.concurrency]
                    ]
                    for body in pool.map(lambda address: fetch(address, self.storage), addresses):
                        file.write(body)
            sha256 = file_sha256(part)
            if sha256 == shard.sha256:
                os.replace(part, path)
                return
        part.unlink()
        raise LabError(
            f"{shard.file}: its SHA-256 is {sha256} and not the manifest's {shard.sha256}, "
            f"downloaded {self.storage.retries + 1} time(s): write the shards anew with python -m data.shards"
        )

    def _evict(self, size: int, keep: Path) -> None:
        """Make room for `size` bytes: the least recently used first, never one in use."""
        files = []
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".part"):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # by another process
                files.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(file[1] for file in files) + size - self.storage.cache_gib * _GIB
        for _, used, path in sorted(files):
            if excess <= 0:
                return
            base = path.with_suffix("") if path.suffix == ".part" else path
            if base != keep and _remove_unused(path, _lock_of(base)):
                excess -= used


def _remove_unused(path: Path, lock_path: Path) -> bool:
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    try:
        path.unlink(missing_ok=True)
        return True
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One downloader at a time, by a lock of its own: were it the readers', who waits for it would wait for
    the first one to let go of the shard, and that one may be waiting for the others of its batch."""
    lock = os.open(path.with_name(path.name + ".download"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.size
    except FileNotFoundError:
        return False


class ShardsAhead:
    """Downloads the shards of a plan in the order in which it needs them, in a thread, ahead of their use.

    What is downloaded and not yet used stays below half of the cache; the other half is for the other split.
    Where a download fails for good the thread ends: the batch that needs the shard will say so.
    """

    def __init__(self, plan: Plan, position: int, cache: ShardCache) -> None:
        self._plan = copy(plan)  # a plan keeps the order of one epoch, and this one is ahead
        self._cache = cache
        self._limit = cache.storage.cache_gib * _GIB / 2
        self._shards = {shard.file: shard for shard in plan.index.shards}
        self._position = position
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="shards ahead", daemon=True)
        self._thread.start()

    def used(self, position: int) -> None:
        """Batches before `position` have been taken."""
        with self._changed:
            self._position = position
            self._changed.notify()

    def close(self) -> None:
        """The download in progress may go on for a moment; it is not waited for."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _work(self) -> None:
        ahead: dict[str, tuple[int, Held]] = {}  # with the last position that is known to need it
        try:
            for position, file in self._needs():
                if file not in ahead and not self._wait_for_room(self._shards[file].size, ahead):
                    return
                held = ahead[file][1] if file in ahead else self._cache.hold(self._shards[file])
                ahead[file] = (position, held)
        except (LabError, OSError):
            return

    def _needs(self) -> Iterator[tuple[int, str]]:
        position = self._position
        while self._wait_for_turn(position):
            rows = self._plan.at(position).rows
            for file in dict.fromkeys(self._plan.index.paths[row].rpartition("#")[0] for row in rows):
                yield position, file
            position += 1

    def _wait_for_turn(self, position: int) -> bool:
        """An epoch ahead names every shard; to look farther would find no work and cost a core."""
        with self._changed:
            while not self._closed and position >= self._position + len(self._plan):
                self._changed.wait()
        return not self._closed

    def _wait_for_room(self, size: int, ahead: dict[str, tuple[int, Held]]) -> bool:
        """False where the loader was closed."""
        with self._changed:
            while not self._closed:
                for file in [file for file, (last, _) in ahead.items() if last < self._position]:
                    del ahead[file]
                waiting = sum(self._shards[file].size for file in ahead)
                if not ahead or waiting + size <= self._limit:
                    return True
                self._changed.wait()
        return False
