"""From an address to bytes: parts of local files, and whatever fsspec can reach, with retries of our own.

fsspec's backends retry by rules of their own or not at all, so those that can be told not to are, and each
failure is retried here: a refusal, a late answer, a connection that drops, a body that is short.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from configs.images import StorageConfig
from deploy.errors import LabError

T = TypeVar("T")
_PART = re.compile(r"(.*)#(\d+)\+(\d+)", re.DOTALL)
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_LONGEST_PAUSE_S = 30.0
_INSTALL = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN where they are temporary), "
    "or AWS_PROFILE; AWS_ENDPOINT_URL for a store that is not Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run gcloud auth "
    "application-default login",
}
_CREDENTIALS |= {"s3a": _CREDENTIALS["s3"], "gcs": _CREDENTIALS["gs"]}
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "DefaultCredentialsError", "RefreshError",
}  # fmt: skip
"""Of botocore and google.auth, which need not be installed."""


@dataclass(frozen=True)
class Address:
    """A file or, where `length` is not None, `length` bytes of it from `offset` on."""

    file: str
    """Path or URL."""
    offset: int
    length: int | None


@dataclass(frozen=True)
class Stored:
    """An object as its store lists it."""

    size: int
    """Bytes."""
    version: str
    """Changes with the content: the ETag, or the time of the last change."""


def parse_address(text: str) -> Address:
    found = _PART.fullmatch(text)
    return Address(found[1], int(found[2]), int(found[3])) if found else Address(text, 0, None)


def part_of(file: str, offset: int, length: int) -> str:
    """The address of `length` bytes of a file."""
    return f"{file}#{offset}+{length}"


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def is_plain(text: str) -> bool:
    """Whether a decoder may open it by its name: a whole local file."""
    return not is_url(text) and _PART.fullmatch(text) is None


def join(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name}" if is_url(root) else os.path.join(root, name)


def fetch(address: str, storage: StorageConfig) -> bytes:
    """The bytes of a URL, all that were asked for. Raises LabError when all tries failed."""
    at = parse_address(address)
    fs, path = _open(at.file, storage)
    # A length that is known can be checked, so the store is asked for it first.
    length = at.length if at.length is not None else stored_size(at.file, storage)
    limit = {"timeout": storage.timeout_s} if fs.async_impl else {}

    def read() -> bytes:
        if length == 0:
            return b""
        body: bytes = fs.cat_file(path, start=at.offset, end=at.offset + length, **limit)
        if len(body) != length:
            raise EOFError(f"{len(body)} bytes came in place of {length}")
        return body

    return _attempt(address, storage, read)


def stored_size(url: str, storage: StorageConfig) -> int:
    fs, path = _open(url, storage)
    return int(_attempt(url, storage, lambda: fs.info(path)["size"]))


def list_tree(root: str, storage: StorageConfig) -> dict[str, Stored]:
    """URL, size and version of every object below a URL, sorted; empty where there is none."""
    fs, path = _open(root, storage)

    def find() -> dict[str, Any]:
        try:
            found: dict[str, Any] = fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return found

    found = _attempt(root, storage, find)
    return {
        str(fs.unstrip_protocol(name)): Stored(int(info["size"]), _version(info))
        for name, info in sorted(found.items())
        if info["type"] == "file"
    }


def upload(source: Path, url: str, storage: StorageConfig) -> None:
    """A local file as an object, which appears when it is whole."""
    fs, path = _open(url, storage)
    _attempt(url, storage, lambda: fs.put_file(str(source), path))


def remove(url: str, storage: StorageConfig) -> None:
    fs, path = _open(url, storage)
    _attempt(url, storage, lambda: fs.rm_file(path))


_opened: dict[tuple[int, str, StorageConfig], Any] = {}


def _open(url: str, storage: StorageConfig) -> tuple[Any, str]:
    """The file system and the path in it; one a process: a forked one cannot go on with its parent's."""
    protocol = url.partition("://")[0]
    key = (os.getpid(), protocol, storage)
    if key not in _opened:
        try:
            fs = fsspec.filesystem(
                protocol, use_listings_cache=False, skip_instance_cache=True, **_options(protocol, storage)
            )
        except ImportError as error:
            package = _INSTALL.get(protocol)
            raise LabError(
                f"{url}: {error}; " + (f"pip install {package}" if package else "install what it names")
            ) from error
        except ValueError as error:
            raise LabError(
                f"{url}: no store of that kind is known ({error}); give a folder, s3://... or gs://..."
            ) from error
        except Exception as error:  # gcsfs looks for its credentials here
            raise _refusal(url, error) or error from error
        if protocol in ("s3", "s3a"):
            fs.retries = 1
        _opened[key] = fs
    fs = _opened[key]
    return fs, str(fs._strip_protocol(url))


def _options(protocol: str, storage: StorageConfig) -> dict[str, Any]:
    if protocol not in ("s3", "s3a"):
        return {}
    limits = {"connect_timeout": storage.timeout_s, "read_timeout": storage.timeout_s}
    pool = {"max_pool_connections": storage.concurrency, "retries": {"total_max_attempts": 1}}
    return {"config_kwargs": limits | pool}


def _version(info: dict[str, Any]) -> str:
    names = ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated", "created")
    return next((str(info[name]) for name in names if info.get(name)), "")


def _attempt(address: str, storage: StorageConfig, action: Callable[[], T]) -> T:
    tries = storage.retries + 1
    said = ""
    for number in range(tries):
        if number:
            pause = min(storage.backoff_s * 2 ** (number - 1), _LONGEST_PAUSE_S)
            # Spread out, so that many ranks do not come back at once. No batch depends on it.
            time.sleep(pause * random.SystemRandom().uniform(0.5, 1.0))
        try:
            return action()
        except Exception as error:  # Each backend raises kinds of its own.
            refusal = _refusal(address, error)
            if refusal is not None:
                raise refusal from error
            said = f"{type(error).__name__}: {str(error)[:300]}" if str(error) else type(error).__name__
            last = error
    raise LabError(
        f"{address}: {said}; tried {tries} time(s). If the store is only slow or busy, raise "
        f"data.storage.retries={storage.retries} or data.storage.timeout_s={storage.timeout_s:g}; if the "
        "object has changed, start again and it will be checked anew"
    ) from last


def _refusal(url: str, error: Exception) -> LabError | None:
    """What to raise where trying again would not help."""
    protocol = url.partition("://")[0]
    remedy = _CREDENTIALS.get(protocol, "give this process the credentials that the store asks for")
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if names & _NO_CREDENTIALS:
        return LabError(f"{url}: no credentials were found ({error}): {remedy}")
    if isinstance(error, PermissionError):
        return LabError(f"{url}: the store refused these credentials ({error}): {remedy}")
    if isinstance(error, FileNotFoundError):
        return LabError(
            f"{url}: there is no such bucket or object: check the address with your store's client"
        )
    return None
