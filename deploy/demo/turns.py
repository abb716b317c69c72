"""Work of the server that takes longer than its loop may wait: one after the other, and a short queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from deploy.demo.guard import RefusedError


class Turns:
    """At most `places` at once wait or work; more are refused with 503. Use it in a `with`."""

    def __init__(self, places: int, refusal: str) -> None:
        self._free = self._places = places
        self._refusal = refusal
        self._turn = asyncio.Lock()

    def __enter__(self) -> None:
        if self._free == 0:
            raise RefusedError(503, f"{self._places} {self._refusal}", {b"retry-after": b"1"})
        self._free -= 1

    def __exit__(self, *error: object) -> None:
        self._free += 1

    async def run(self, call: Callable[[], bytes]) -> bytes:
        """What it returns or raises, once it was its turn."""
        async with self._turn:
            return await _in_daemon(call)


async def _in_daemon(call: Callable[[], bytes]) -> bytes:
    """In a thread that does not hold the process at its end, as an executor's do: a switch may build an
    engine for minutes, and Ctrl-C is not to wait for that."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(result: bytes | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result or b"")

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # the caller's, whatever it is
            error = raised
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    Thread(target=work, name="demo-request", daemon=True).start()
    return await done
