"""What somebody who means no good may send the demo's server, which runs in a process of its own.

That process ends itself where it opens a file to write or starts a program (`tests.fake_show.forbid`), and
its memory is watched in /proc: MAX_GROWTH_MB is what it may grow by, whatever comes.
"""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.demo.limits import MAX_BODY, MAX_CONNECTIONS, MAX_GROWTH_MB, MAX_PIXELS
from deploy.demo.server import serve
from tests.demo_client import Process, Viewer, ask, classify, everything, process, raw
from tests.fake_show import FakeShow
from tests.test_demo_pictures import FORMS, encoded, png_bomb

HOST = b"Host: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Process]:
    with process(folder) as started:
        classify(started.port, encoded("JPEG"))  # libraries loaded
        yield started


@pytest.fixture
def server(shared: Process, folder: Path) -> Iterator[Process]:
    """Alive, small and without a trace on the disk after each test."""
    before = shared.memory_mb()
    yield shared
    assert shared.is_alive(), f"exit code {shared.popen.returncode}"
    assert classify(shared.port, encoded("PNG")).status == 200
    assert shared.memory_mb("VmHWM") - before < MAX_GROWTH_MB
    assert list(folder.iterdir()) == []


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """One to eight wounds: bytes changed, cut out, doubled, moved; the end cut off; a size made enormous."""
    body = bytearray(whole)
    for _ in range(draw.randint(1, 8)):
        at, length = draw.randrange(len(body)), draw.randint(1, 16)
        wound = draw.randrange(6)
        if wound == 0:
            body[at : at + length] = draw.randbytes(length)
        elif wound == 1:
            del body[at : at + length]
        elif wound == 2:
            body[at:at] = body[at : at + length]
        elif wound == 3:
            body[at : at + 4] = draw.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"]
            )
        elif wound == 4:
            body[at] ^= 1 << draw.randrange(8)
        else:
            del body[max(at, 8) :]
        if not body:
            return whole[:9]
    return bytes(body)


def fuzz(server: Process, count: int, seed: int) -> dict[int, int]:
    """How many got which status. One connection, as long as it lasts."""
    draw = random.Random(seed)
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    pictures = [encoded(kind, **options) for kind, options in FORMS]
    pictures += [encoded(kind, picture=Image.fromarray(noise)) for kind in ("JPEG", "PNG", "WEBP")]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    statuses: dict[int, int] = {}
    for number in range(count):
        body = mutated(draw.choice(pictures), draw)
        connection.request("POST", "/classify", body, {"Content-Type": "image/png"})
        reply = connection.getresponse()
        text = reply.read()
        assert reply.status in (200, 422), f"picture {number} of seed {seed}: {reply.status} {text!r}"
        assert b"\n" not in text
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
    connection.close()
    return statuses


def test_mutated_pictures(server: Process) -> None:
    statuses = fuzz(server, 400, seed=1)
    assert min(statuses.get(200, 0), statuses.get(422, 0)) > 50, (
        "one-sided: it does not look into the decoders"
    )


@pytest.mark.slow
def test_ten_thousand_mutated_pictures(server: Process) -> None:
    assert sum(fuzz(server, 10_000, seed=2).values()) == 10_000


def test_decompression_bombs(server: Process) -> None:
    side = int(MAX_PIXELS**0.5)
    for width, height, status in ((20_000, 10_000, 422), (side, side, 200), (side, side + 5, 422)):
        assert classify(server.port, png_bomb(width, height)).status == status
    gif = bytearray(encoded("GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    assert classify(server.port, bytes(gif), "image/gif").status == 422


def test_a_body_of_100_mb_is_refused_unread(server: Process) -> None:
    before = server.memory_mb()
    head = b"POST /classify HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\n"
    with raw(server.port, head + b"Content-Length: 104857600\r\n\r\n") as connection:
        assert everything(connection).startswith(b"HTTP/1.1 413 ")
    with raw(server.port, head + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        sent = 0
        try:
            for _ in range(100):
                connection.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                sent += 1 << 20
        except OSError:
            pass
        assert sent < 4 * MAX_BODY, "it went on reading"
    assert server.memory_mb() - before < 4 * MAX_BODY / 1e6


def test_half_requests_keep_nobody_out(server: Process) -> None:
    with ExitStack() as stack, Viewer(server.port) as viewer:
        viewer.message()
        for number in range(2 * MAX_CONNECTIONS):
            half = (b"GET / HTTP/1.1\r\n" + HOST + b"X: ")[: 1 + number % 40]
            stack.enter_context(raw(server.port, half))
        assert ask(server.port, "GET", "/").status == 200
        assert classify(server.port, encoded("PNG")).status == 200
        assert server.num_sockets() < MAX_CONNECTIONS + 10  # and the loop's own
        viewer.message()


def test_half_bodies_keep_nobody_from_the_page(server: Process) -> None:
    head = (
        b"POST /classify HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
    )
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS // 2):
            stack.enter_context(raw(server.port, head))
        assert ask(server.port, "GET", "/").status == 200


def test_those_who_are_slow_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.connection.HEAD_S", 0.2)
    monkeypatch.setattr("deploy.demo.server.KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr("deploy.demo.body.BODY_S", 0.2)
    upload = b"POST /classify HTTP/1.1\r\n" + HOST + b"Content-Type: image/png\r\nContent-Length: 9\r\n\r\nab"
    with serve(FakeShow(), title="") as serving:
        for half in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nX: y"):
            with raw(serving.port, half) as connection:
                assert everything(connection) == b""
        with raw(
            serving.port, b"GET / HTTP/1.1\r\n" + HOST + b"\r\nGET /p"
        ) as connection:  # and half of another
            assert everything(connection).count(b"HTTP/1.1 200") == 1
        with raw(serving.port, upload) as connection:
            assert everything(connection).startswith(b"HTTP/1.1 408 ")


def test_a_reader_that_stalls_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.demo.connection.STALL_S", 0.2)
    show = FakeShow()
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with serve(show, title="") as serving, raw(serving.port, b"GET /stream HTTP/1.1\r\n" + HOST + b"\r\n"):
        while not show.calls:
            pass
        while show.calls:  # until the server no longer counts it
            show.play(noise)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/page/../app.py", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd",
        "//etc/passwd", "/page.js/../../guard.py", "/page.css%00.png", "/page/index.html", "/guard.py",
        "/.git/config", "/page.js?../../x", "http://127.0.0.1/etc/passwd",
    ],
)  # fmt: skip
def test_no_path_leads_elsewhere(server: Process, path: str) -> None:
    reply = ask(server.port, "GET", path)
    if path == "/page.js?../../x":
        assert reply.body == ask(server.port, "GET", "/page.js").body
    else:
        assert (reply.status, set(reply.json())) == (404, {"error"})


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "multipart/form-data; boundary=x", "image/svg+xml", "image/tiff", "image/../png"],
)
def test_another_content_type_is_refused(server: Process, kind: str) -> None:
    reply = classify(server.port, encoded("PNG"), kind)
    assert reply.status == 415
    assert "image/png" in reply.json()["error"]
    assert ask(server.port, "POST", "/switch", b"{}", {"Content-Type": kind}).status == 415


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc", b"\0" * 5000, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 10_000 + b"\r\n",
        b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"POST /classify HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /classify HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST /switch HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: 50\r\n\r\nabc",
        b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(server: Process, sent: bytes) -> None:
    with raw(server.port) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(1)
        except OSError:  # it has hung up already
            pass
        answer = everything(connection)
    assert answer == b"" or answer.split(b" ", 2)[1][:1] == b"4"
    assert b"Traceback" not in answer


@pytest.mark.parametrize(
    ("name", "value"), [("Origin", "http://evil.example"), ("Sec-Fetch-Site", "cross-site")]
)
def test_a_foreign_page_gets_nothing(server: Process, name: str, value: str) -> None:
    assert classify(server.port, encoded("PNG"), **{name: value}).status == 403
    assert ask(server.port, "GET", "/stream", headers={name: value}).status == 403
    preflight = {name: value, "Access-Control-Request-Method": "POST"}
    reply = ask(server.port, "OPTIONS", "/classify", headers=preflight)
    assert reply.status == 405
    assert not [header for header in reply.headers if header.startswith("access-control")]


def test_the_token_is_not_told(tmp_path: Path) -> None:
    token = "a-token-of-this-test"
    with process(tmp_path, token=token) as own:
        for headers in ({}, {"Authorization": "Bearer a-token-of-this-tesT"}, {"Cookie": f"token={token}"}):
            reply = ask(own.port, "GET", "/stream", headers=headers)
            assert reply.status == 401
            assert token.encode() not in reply.body
        assert ask(own.port, "GET", "/?x", headers={"Authorization": f"Bearer {token}"}).status == 200
        assert own.popen.stdout is not None
        own.popen.stdin.close()  # type: ignore[union-attr]
        assert own.popen.stdout.read() == ""
