"""A folder or a URL that files are written to."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from configs.images import StorageConfig
from data.fetch import fetch, is_url, join, list_tree, part_of, remove, stored_size, upload
from deploy.bundle import file_sha256

_PIECE = 8 << 20


class Output:
    """The folder or URL that is written to. A file gets its final name when it is whole."""

    def __init__(self, root: str, storage: StorageConfig) -> None:
        self._root = root
        self._storage = storage
        self._remote = is_url(root)
        if not self._remote:
            Path(root).mkdir(parents=True, exist_ok=True)
            for torn in Path(root).glob(".*.tmp"):
                torn.unlink()

    def names(self) -> set[str]:
        if self._remote:
            return {url.rpartition("/")[2] for url in list_tree(self._root, self._storage)}
        return set(os.listdir(self._root))

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A file under a passing name, which `publish` takes; what is left of it goes at the end."""
        path = Path(tempfile.gettempdir() if self._remote else self._root, f".{name}.{os.getpid()}.tmp")
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def publish(self, path: Path, name: str) -> None:
        if self._remote:
            upload(path, join(self._root, name), self._storage)
        else:
            os.replace(path, Path(self._root, name))

    def put(self, name: str, content: bytes) -> None:
        with self.staged(name) as path:
            path.write_bytes(content)
            self.publish(path, name)

    def read(self, name: str) -> bytes:
        where = join(self._root, name)
        return fetch(where, self._storage) if self._remote else Path(where).read_bytes()

    def remove(self, name: str) -> None:
        where = join(self._root, name)
        if self._remote:
            remove(where, self._storage)
        else:
            os.unlink(where)

    def sha256(self, name: str) -> str:
        where = join(self._root, name)
        if not self._remote:
            return file_sha256(Path(where))
        size = stored_size(where, self._storage)
        parts = [part_of(where, at, min(_PIECE, size - at)) for at in range(0, size, _PIECE)]
        digest = hashlib.sha256()
        with ThreadPoolExecutor(self._storage.concurrency) as pool:
            for first in range(0, len(parts), self._storage.concurrency):
                some = parts[first : first + self._storage.concurrency]
                for content in pool.map(lambda part: fetch(part, self._storage), some):
                    digest.update(content)
        return digest.hexdigest()
