"""A viewer and a caller of the demo's server, byte by byte where that matters."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import environment


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def classify(port: int, body: bytes, kind: str = "image/png", **headers: str) -> Reply:
    return ask(port, "POST", "/classify", body, {"Content-Type": kind, **headers})


def switch(port: int, **asked: object) -> Reply:
    return ask(port, "POST", "/switch", json.dumps(asked).encode(), {"Content-Type": "application/json"})


@dataclass(frozen=True)
class Process:
    """A server in a process of its own."""

    port: int
    popen: subprocess.Popen[str]

    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def num_sockets(self) -> int:
        links = [os.readlink(link) for link in Path(f"/proc/{self.popen.pid}/fd").iterdir()]
        return sum(link.startswith("socket:") for link in links)

    def memory_mb(self, field: str = "VmRSS") -> float:
        """Of /proc: VmRSS is now, VmHWM the most there has been."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


@contextmanager
def process(folder: Path, port: int = 0, token: str | None = None) -> Iterator[Process]:
    """The fake show, served; `folder` is where it works, its home and its place for temporary files."""
    extra = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.fake_show", str(port), *([token] if token else [])],
        cwd=folder, env=environment(extra), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as popen:  # fmt: skip
        assert popen.stdin is not None
        assert popen.stdout is not None
        try:
            yield Process(int(popen.stdout.readline()), popen)
        finally:
            popen.stdin.close()
            try:
                popen.wait(20)
            except subprocess.TimeoutExpired:
                popen.kill()
                raise


@contextmanager
def raw(port: int, data: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(data)
        yield connection


def everything(connection: socket.socket) -> bytes:
    """Until the server closes; what a reset leaves is lost."""
    found = bytearray()
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return bytes(found)


class Viewer:
    """Watches the stream. Use it in a `with`."""

    def __init__(self, port: int, headers: Mapping[str, str] | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.request("GET", "/stream", headers=dict(headers or {}))
        self.answer = self.connection.getresponse()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *error: object) -> None:
        self.answer.close()
        self.connection.close()

    def message(self) -> tuple[Any, bytes]:
        """JSON and JPEG. Raises EOFError at the end of the stream."""
        head = self.answer.read(8)
        if len(head) < 8:
            raise EOFError
        text, picture = struct.unpack(">II", head)
        # read(0) would wait for the next chunk.
        return json.loads(self.answer.read(text)), self.answer.read(picture) if picture else b""
