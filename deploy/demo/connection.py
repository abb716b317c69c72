"""What uvicorn's h11 connection lacks: a time for the headers, for a reader that stalls, and a full house."""

from __future__ import annotations

import asyncio
from typing import Any

from deploy.demo.limits import HEAD_S, MAX_CONNECTIONS, STALL_S
from deploy.demo.messages import error_json


def connection_class() -> type[asyncio.Protocol]:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Connection(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since = self.loop.time()
            self.stall: asyncio.TimerHandle | None = None
            self.head: asyncio.TimerHandle | None = self.loop.call_later(HEAD_S, transport.abort)
            if len(self.connections) > MAX_CONNECTIONS:
                self._make_room()

        def data_received(self, data: bytes) -> None:
            try:
                super().data_received(data)
            except h11.LocalProtocolError:  # rubbish after a request that is being answered
                self.transport.abort()
                return
            if self.waits() and self.head is None:
                self.head = self.loop.call_later(HEAD_S, self.transport.abort)
            elif not self.waits() and self.head is not None:
                self.head.cancel()
                self.head = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.head, self.stall):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self.stall is None:
                self.stall = self.loop.call_later(STALL_S, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.stall is not None:
                self.stall.cancel()
                self.stall = None

        def waits(self) -> bool:
            """For a whole head; nothing is being answered."""
            return self.conn.their_state is h11.IDLE

        def _make_room(self) -> None:
            others = [c for c in self.connections if isinstance(c, Connection) and c is not self]
            idle = [c for c in others if c.waits() or c.transport.is_closing()]
            victim = min(idle, key=lambda c: c.since, default=self)
            self.connections.discard(victim)
            victim.transport.abort()

        def send_400_response(self, msg: str) -> None:
            """In JSON, as every refusal."""
            body = error_json("this is no HTTP/1.1 that can be read, or its headers are too long")
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=400, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection
