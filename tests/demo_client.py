"""A viewer and a caller of the demo's server, byte by byte where that matters."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


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
