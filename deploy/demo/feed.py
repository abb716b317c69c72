"""The live stream: each new picture is encoded once, for all viewers, and only while somebody watches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from deploy.demo.guard import RefusedError
from deploy.demo.limits import HEARTBEAT_S, MAX_SHOWN_PER_S, MAX_VIEWERS
from deploy.demo.messages import frame, stream_json
from deploy.demo.pictures import encode_frame
from deploy.demo.show import Show, Shown


@dataclass(frozen=True)
class _News:
    """What viewers get next. text: JSON. picture: JPEG, the same object while it is the same picture."""

    text: bytes
    shown: Shown | None
    picture: bytes


class Feed:
    """All of it runs in the server's loop, but for the encoding, which has a thread of its own.

    A viewer asks for the newest there is once it has taken the last one, so a slow one misses pictures and
    nobody waits for it.
    """

    def __init__(self, show: Show, title: str) -> None:
        self._show = show
        self._title = title
        self._thread = ThreadPoolExecutor(1, "demo-encode")
        self._news: _News | None = None
        self._changed = asyncio.Event()
        self._maker: asyncio.Task[None] | None = None
        self._num_viewers = 0
        self._closed = False

    async def watch(self, send: Callable[[bytes], Awaitable[None]], gone: asyncio.Event) -> None:
        """Send messages until `gone` is set, or the feed closes. Raises RefusedError where too many watch."""
        if self._num_viewers >= MAX_VIEWERS:
            raise RefusedError(503, f"{MAX_VIEWERS} viewers watch already; close one")
        self._num_viewers += 1
        if self._maker is None:
            self._maker = asyncio.create_task(self._make())
        sent: _News | None = None
        try:
            while not (self._closed or gone.is_set()):
                news, changed = self._news, self._changed
                if news is None or news is sent:
                    if self._maker.done():
                        self._maker.result()  # raises what ended it
                    await changed.wait()
                    continue
                same = sent is not None and sent.picture is news.picture
                sent = news
                await send(frame(news.text, b"" if same else news.picture))
        finally:
            self._num_viewers -= 1
            if self._num_viewers == 0:
                self._maker.cancel()
                self._maker, self._news = None, None

    def wake(self) -> None:
        """Have every viewer look whether it is still wanted."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def close(self) -> None:
        self._closed = True
        if self._maker is not None:
            self._maker.cancel()
        self.wake()
        self._thread.shutdown(wait=False)

    async def _make(self) -> None:
        """New news for each new picture, at most MAX_SHOWN_PER_S of them, and at least each HEARTBEAT_S."""
        loop = asyncio.get_running_loop()
        new = asyncio.Event()
        forget = self._show.on_new(lambda: _tell(loop, new))
        try:
            while True:
                started = loop.time()
                new.clear()
                self._news = await loop.run_in_executor(self._thread, self._latest, self._news)
                self.wake()
                heartbeat = loop.call_later(HEARTBEAT_S, new.set)
                await new.wait()
                heartbeat.cancel()
                await asyncio.sleep(max(0.0, started + 1 / MAX_SHOWN_PER_S - loop.time()))
        finally:
            forget()
            self.wake()

    def _latest(self, last: _News | None) -> _News:
        shown, status = self._show.latest(), self._show.status()
        text = stream_json(self._title, shown, status)
        if last is not None and last.shown is shown:
            return _News(text, shown, last.picture)
        return _News(text, shown, b"" if shown is None else encode_frame(shown.image))


def _tell(loop: asyncio.AbstractEventLoop, new: asyncio.Event) -> None:
    """From the thread that classifies: a loop that has ended meanwhile is no fault of its."""
    if not new.is_set():
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(new.set)
