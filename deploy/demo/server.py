"""Serving the demo's page: the socket, the token's rule, and a uvicorn in a thread of its own."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.demo.app import make_app
from deploy.demo.connection import connection_class
from deploy.demo.feed import Feed
from deploy.demo.guard import check_token, is_loopback
from deploy.demo.limits import KEEP_ALIVE_S, MAX_HEAD, SEND_BUFFER
from deploy.demo.pictures import check_library
from deploy.demo.show import Show
from deploy.errors import LabError


@dataclass(frozen=True)
class Serving:
    """A server that runs. url: without the token, for a browser on this network."""

    url: str
    port: int
    _thread: threading.Thread

    def wait(self, seconds: float) -> bool:
        """Whether it still runs after so long."""
        self._thread.join(seconds)
        return self._thread.is_alive()


@contextmanager
def serve(
    show: Show, *, title: str, host: str = "127.0.0.1", port: int = 0, token: str | None = None
) -> Iterator[Serving]:
    """The page for a show on http://host:port/, until the block ends.

    port: 0 takes a free one. token: what every request but those for the page itself must bring; needed where
    `host` is not a loopback address. Raises LabError for an address that cannot be had, a missing token, and
    a library that is not installed.
    """
    check_library()
    if token is not None:
        check_token(token)
    elif not is_loopback(host):
        raise LabError(f"host {host}: others can reach it, so it needs a token")
    try:
        import uvicorn
    except ImportError as error:
        raise LabError("the demo's page needs uvicorn: pip install uvicorn") from error
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    # A broken picture is told to whom it belongs; Pillow would tell the terminal as well.
    warnings.filterwarnings("ignore", module=r"PIL\.")

    feed = Feed(show, title)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(show, feed, token),
            http=connection_class(),
            ws="none",
            loop="asyncio",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.CRITICAL,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
    )
    loops: list[asyncio.AbstractEventLoop] = []
    ready = threading.Event()

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="demo-server", daemon=True)
    thread.start()
    ready.wait()
    try:
        yield Serving(f"http://{_address(host)}:{port}/", port, thread)
    finally:

        def stop() -> None:
            feed.close()
            server.should_exit = True

        if thread.is_alive():
            loops[0].call_soon_threadsafe(stop)
        thread.join()
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket; connections are taken from the moment that uvicorn has it."""
    if not 0 <= port <= 65535:
        raise LabError(f"port {port}: must be 0 to 65535; 0 takes a free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise LabError(f"host {host}: {error.strerror or error}; give an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        remedy = {
            errno.EADDRINUSE: "choose another --port; 0 takes a free one",
            errno.EACCES: "choose a --port above 1023",
            errno.EADDRNOTAVAIL: "give a --host that is an address of this machine",
        }.get(error.errno or 0, "choose another --host or --port")
        reason = os.strerror(error.errno or 0).lower()
        raise LabError(f"{host}:{port}: {reason}; {remedy}") from error
    return listener


def _address(host: str) -> str:
    """How a browser is to call it: for "all addresses" the one that this machine's traffic leaves by."""
    if host in ("0.0.0.0", "::"):
        family = socket.AF_INET if host == "0.0.0.0" else socket.AF_INET6
        elsewhere = "192.0.2.1" if host == "0.0.0.0" else "2001:db8::1"  # RFC 5737 and 3849: nobody's
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((elsewhere, 9))  # UDP: nothing is sent
                host = probe.getsockname()[0]
        except OSError:
            host = socket.gethostname()
    return f"[{host}]" if ":" in host else host
