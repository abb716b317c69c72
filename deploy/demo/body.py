"""A request's body into memory, within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from deploy.demo.guard import RefusedError
from deploy.demo.limits import BODY_S, LINGER_BYTES, LINGER_S


class Body:
    """What comes of a request after its headers. ended: nothing more does."""

    def __init__(
        self,
        headers: Mapping[bytes, bytes],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    ) -> None:
        self._receive = receive
        self.length = int(headers.get(b"content-length", b"0"))
        self.ended = self.length == 0 and b"transfer-encoding" not in headers

    async def read(self, limit: int) -> bytes:
        """All of it.

        Raises RefusedError for more than `limit` bytes, told beforehand or once there are as many, for a
        body that is not whole after BODY_S, an empty one, and a client that has gone.
        """
        if self.length > limit:
            raise _too_large(limit)
        try:
            body = await asyncio.wait_for(self._read(limit), BODY_S)
        except asyncio.TimeoutError:
            raise RefusedError(408, f"the body was not whole after {BODY_S:g} s") from None
        if not body:
            raise RefusedError(422, "the body is empty")
        return bytes(body)

    async def drain(self) -> None:
        """Throw away what still comes of a body that is not wanted, for a moment; see LINGER_S."""

        async def throw_away() -> None:
            left = LINGER_BYTES
            while not self.ended and left > 0:
                left -= len(await self._next() or b"")

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(throw_away(), LINGER_S)

    async def _read(self, limit: int) -> bytearray:
        body = bytearray()
        while not self.ended:
            piece = await self._next()
            if piece is None:
                raise RefusedError(400, "the connection ended in the middle of the body")
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
        return body

    async def _next(self) -> bytes | None:
        """None where the client has gone."""
        message = await self._receive()
        gone = message["type"] == "http.disconnect"
        self.ended = gone or not message["more_body"]
        return None if gone else bytes(message["body"])


def _too_large(limit: int) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limit} bytes, the most that is taken")
