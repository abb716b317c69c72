"""The demo's routes, as a plain ASGI application: the page, the live stream, classifying, switching.

| route | answers |
|---|---|
| GET /, /page.css, /icon.svg, ... | the page, which holds no data and is given without the token |
| GET /stream | messages of `deploy.demo.messages.frame`, until the viewer leaves |
| POST /classify | what the lanes say of the picture in the body, as JSON |
| POST /switch | {"side": 0, "variant": ..., "backend": ...}: `{}` once it runs |

Every refusal is JSON of one line, {"error": ...}. There are no other paths, and no name of a request is ever
joined to a path of a file. Nothing is written.
"""

from __future__ import annotations

import asyncio
import json
import pkgutil
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from deploy.demo.body import Body
from deploy.demo.feed import Feed
from deploy.demo.guard import RefusedError, check_data, check_page
from deploy.demo.limits import MAX_BODY, MAX_HEAD, MAX_JSON, MAX_UPLOADS
from deploy.demo.messages import error_json, shown_json
from deploy.demo.pictures import decode_upload
from deploy.demo.show import Lane, Show
from deploy.demo.turns import Turns
from deploy.errors import LabError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PAGE = {
    "/": ("index.html", b"text/html; charset=utf-8"),
    "/page.css": ("page.css", b"text/css; charset=utf-8"),
    **{f"/{name}": (name, b"text/javascript; charset=utf-8") for name in ("page.js", "lane.js", "stream.js")},
    "/icon.svg": ("icon.svg", b"image/svg+xml"),
}
METHODS = {**dict.fromkeys(PAGE, "GET"), "/stream": "GET", "/classify": "POST", "/switch": "POST"}
IMAGE_TYPES = (b"image/jpeg", b"image/png", b"image/gif", b"image/webp", b"image/bmp")
JSON_TYPE = b"application/json"
SECURITY = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-store"),
]


def make_app(show: Show, feed: Feed, token: str | None) -> Application:
    """The application, for the loop that it is called in; close `feed` before that loop ends."""
    uploads = Turns(MAX_UPLOADS, "pictures are waiting already; try again in a moment")
    switches = Turns(1, "switch is under way already; wait for it")

    async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        body = Body(headers, receive)
        try:
            path = _checked_path(scope, body)
            if path in PAGE:
                check_page(headers, token)
                name, kind = PAGE[path]
                await _answer(send, 200, kind, pkgutil.get_data(__name__, f"page/{name}") or b"")
                return
            check_data(headers, token)
            if path == "/stream":
                await _stream(feed, receive, send)
                return
            if path == "/classify":
                answer = await _classify(show, uploads, headers, body)
            else:
                answer = await _switch(show, switches, headers, body)
            await _answer(send, 200, JSON_TYPE, answer)
        except RefusedError as refused:
            await _refuse(send, body, refused)
        except asyncio.CancelledError:  # the server ends
            raise
        except Exception:  # a defect of ours: told where the demo runs, and it goes on
            traceback.print_exc(file=sys.stderr)
            await _refuse(
                send, body, RefusedError(500, "the demo has failed at this; its terminal says more")
            )

    return app


def _checked_path(scope: Mapping[str, Any], body: Body) -> str:
    path, method = str(scope["path"]), str(scope["method"])
    if sum(len(name) + len(value) for name, value in scope["headers"]) + len(path) > MAX_HEAD:
        raise RefusedError(431, f"the request's headers are longer than {MAX_HEAD} bytes")
    if path not in METHODS:
        raise RefusedError(404, "there is no such page here")
    if method != METHODS[path] and not (method == "HEAD" and path in PAGE):
        raise RefusedError(405, f"only {METHODS[path]} is answered here", {b"allow": METHODS[path].encode()})
    if METHODS[path] == "GET" and not body.ended:  # it would hold the connection after the answer
        raise RefusedError(400, "GET takes no body")
    return path


async def _stream(feed: Feed, receive: Receive, send: Send) -> None:
    started, gone = False, asyncio.Event()

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()
        feed.wake()

    async def give(data: bytes) -> None:
        nonlocal started
        if not started:
            await send(_start(200, [(b"content-type", b"application/octet-stream")]))
            started = True
        await send({"type": "http.response.body", "body": data, "more_body": True})

    leaving = asyncio.create_task(leave())
    try:
        await feed.watch(give, gone)
        if not started:
            raise RefusedError(503, "the demo ends")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        leaving.cancel()


async def _classify(show: Show, uploads: Turns, headers: Mapping[bytes, bytes], body: Body) -> bytes:
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind not in IMAGE_TYPES:
        known = b", ".join(IMAGE_TYPES).decode()
        raise RefusedError(
            415, f"content type {kind.decode('latin-1')!r:.60} is not taken; there are: {known}"
        )

    with uploads:
        encoded = await body.read(MAX_BODY)
        try:
            return await uploads.run(lambda: shown_json(show.classify(decode_upload(encoded))))
        except LabError as error:
            raise RefusedError(422, str(error)) from error


async def _switch(show: Show, switches: Turns, headers: Mapping[bytes, bytes], body: Body) -> bytes:
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON_TYPE:
        raise RefusedError(415, f"content type must be {JSON_TYPE.decode()}")
    try:
        asked = json.loads(await body.read(MAX_JSON))
        side, lane = asked["side"], Lane(asked["variant"], asked["backend"])
    except (ValueError, TypeError, KeyError, RecursionError):
        side, lane = None, Lane("", "")
    strings = isinstance(lane.variant, str) and isinstance(lane.backend, str)
    if not strings or type(side) is not int or not 0 <= side < len(show.status().lanes):
        raise RefusedError(
            422, 'this is no {"side": 0, "variant": "...", "backend": "..."} for a side that is shown'
        )

    def switch() -> bytes:
        show.switch(side, lane)
        return b"{}"

    with switches:
        try:
            return await switches.run(switch)
        except LabError as error:
            raise RefusedError(409, str(error)) from error


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": SECURITY + headers}


async def _answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    length = str(len(body)).encode()
    await send(_start(status, [(b"content-type", kind), (b"content-length", length)]))
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _refuse(send: Send, body: Body, refused: RefusedError) -> None:
    """The reason; and where the request's body is not read to its end, that of the connection."""
    text = error_json(str(refused))
    headers = [
        (b"content-type", JSON_TYPE),
        (b"content-length", str(len(text)).encode()),
        *refused.headers.items(),
    ]
    if not body.ended:
        headers.append((b"connection", b"close"))
    await send(_start(refused.status, headers))
    await send({"type": "http.response.body", "body": text, "more_body": True})
    await body.drain()
    await send({"type": "http.response.body", "body": b"", "more_body": False})
