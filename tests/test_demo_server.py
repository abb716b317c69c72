"""The demo's server on a loopback port, and a Show that is none: the page, uploads, switches, addresses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from deploy.demo.limits import MAX_UPLOADS
from deploy.demo.server import Serving, serve
from deploy.errors import LabError
from tests.demo_client import Viewer, ask, classify, everything, raw, switch
from tests.fake_show import CHOICES, FakeShow
from tests.test_demo_pictures import encoded

TOKEN = "a-token-of-this-test"


def watch_for_ever(viewer: Viewer) -> None:
    while True:
        viewer.message()


@pytest.fixture
def show() -> FakeShow:
    return FakeShow()


@pytest.fixture
def served(show: FakeShow) -> Iterator[Serving]:
    with serve(show, title="flowers") as serving:
        yield serving


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript"),
        ("/stream.js", "text/javascript"), ("/lane.js", "text/javascript"), ("/icon.svg", "image/svg+xml"),
    ],
)  # fmt: skip
def test_the_page_and_its_parts(served: Serving, path: str, kind: str) -> None:
    reply = ask(served.port, "GET", path)
    assert reply.status == 200
    assert reply.headers["content-type"].startswith(kind)
    assert len(reply.body) > 100
    assert ask(served.port, "HEAD", path).status == 200
    assert ask(served.port, "HEAD", "/stream").status == 405


def test_the_headers_keep_everything_else_out(served: Serving) -> None:
    for reply in (
        ask(served.port, "GET", "/"),
        ask(served.port, "GET", "/none"),
        classify(served.port, b"x"),
    ):
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert "server" not in reply.headers


def test_an_upload_is_classified(served: Serving) -> None:
    reply = classify(served.port, encoded("JPEG"), "image/jpeg")
    assert reply.status == 200
    shown = reply.json()["shown"]
    assert (shown["number"], shown["width"], shown["height"]) == (0, 61, 37)
    assert len(shown["answers"]) == 2


def test_uploads_wait_in_a_short_queue(served: Serving, show: FakeShow) -> None:
    show.hold = threading.Event()
    replies: list[int] = []

    def upload() -> None:
        while (status := classify(served.port, encoded("PNG")).status) == 503:
            pass
        replies.append(status)

    threads = [threading.Thread(target=upload) for _ in range(MAX_UPLOADS)]
    for thread in threads:
        thread.start()
    try:
        while (last := classify(served.port, b"")).status == 422:  # until all of them stand there
            pass
        assert (last.status, last.headers["retry-after"]) == (503, "1")
        assert ask(served.port, "GET", "/").status == 200
    finally:
        show.hold.set()
        for thread in threads:
            thread.join()
    assert replies == [200] * MAX_UPLOADS


def test_a_side_is_switched(served: Serving, show: FakeShow) -> None:
    assert switch(served.port, side=1, variant="fp32", backend="openvino").status == 200
    assert show.lanes == [CHOICES[0], CHOICES[1]]
    reply = switch(served.port, side=0, variant="fp64", backend="openvino")
    assert (reply.status, "cannot run here" in reply.json()["error"]) == (409, True)
    assert show.lanes == [CHOICES[0], CHOICES[1]]


@pytest.mark.parametrize(
    "asked",
    [
        {}, {"side": 2, "variant": "fp32", "backend": "openvino"},
        {"side": -1, "variant": "a", "backend": "b"},
        {"side": True, "variant": "a", "backend": "b"}, {"side": 0, "variant": ["a"], "backend": "b"},
        {"side": 0, "variant": "a"}, {"side": 0.5, "variant": "a", "backend": "b"},
    ],
)  # fmt: skip
def test_a_switch_that_makes_no_sense(served: Serving, asked: dict[str, object]) -> None:
    assert switch(served.port, **asked).status == 422


def test_with_a_token_the_page_is_open_and_the_data_is_not(show: FakeShow) -> None:
    with serve(show, title="flowers", token=TOKEN) as serving:
        mine = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(serving.port, "GET", "/").status == 200
        for headers, status in (({}, 401), ({"Authorization": "Bearer wrong"}, 401), (mine, 200)):
            assert classify(serving.port, encoded("PNG"), **headers).status == status
            with Viewer(serving.port, headers) as viewer:
                assert viewer.answer.status == status
        assert ask(serving.port, "POST", "/switch", b"{}").status == 401
        assert ask(serving.port, "GET", f"/?token={TOKEN}").status == 200
        assert ask(serving.port, "GET", f"/stream?token={TOKEN}").status == 401


def test_an_address_for_others_needs_a_token(show: FakeShow) -> None:
    with (
        pytest.raises(LabError, match=r"0\.0\.0\.0: .* needs a token"),
        serve(show, title="", host="0.0.0.0"),
    ):
        pass
    with serve(show, title="", host="0.0.0.0", token=TOKEN) as serving:
        assert ask(serving.port, "GET", "/").status == 200
        assert TOKEN not in serving.url
        assert "0.0.0.0" not in serving.url


def test_addresses_that_cannot_be_had(show: FakeShow) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(LabError, match=rf"{port}: address already in use; .*--port"),
            serve(show, title="", port=port),
        ):
            pass
    for wrong in (
        {"port": 70000},
        {"host": "203.0.113.9", "token": TOKEN},
        {"host": "no host", "token": TOKEN},
    ):
        with (
            pytest.raises(LabError, match=r"--host|address of this machine|0 to 65535"),
            serve(show, title="", **wrong),
        ):
            pass


def test_a_server_ends_with_viewers_and_its_port_is_free_again(show: FakeShow) -> None:
    with serve(show, title="") as serving:
        viewer = Viewer(serving.port)
        viewer.message()
    with pytest.raises(EOFError):
        watch_for_ever(viewer)
    assert not serving.wait(seconds=0)
    with serve(show, title="", port=serving.port) as again:
        assert ask(again.port, "GET", "/").status == 200


def test_work_that_takes_long_does_not_hold_the_end(show: FakeShow) -> None:
    show.hold = threading.Event()
    ended = threading.Event()
    length = len(encoded("PNG"))
    head = f"POST /classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n".encode()
    head += b"Content-Type: image/png\r\n\r\n"
    with serve(show, title="") as serving:

        def send() -> None:
            with raw(serving.port, head + encoded("PNG")) as connection:
                everything(connection)
            ended.set()

        upload = threading.Thread(target=send)
        upload.start()
        while not any(thread.name == "demo-request" for thread in threading.enumerate()):
            pass
    assert not serving.wait(seconds=0)
    assert ended.wait(30)
    assert all(t.daemon for t in threading.enumerate() if t.name == "demo-request")
    show.hold.set()
    upload.join()


def test_a_defect_is_told_in_the_terminal_and_the_server_goes_on(
    served: Serving, show: FakeShow, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(image: object) -> None:
        raise ZeroDivisionError("of this test")

    monkeypatch.setattr(show, "classify", broken)
    reply = classify(served.port, encoded("PNG"))
    assert reply.status == 500
    assert "ZeroDivisionError" not in reply.json()["error"]
    assert "ZeroDivisionError: of this test" in capfd.readouterr().err
    assert ask(served.port, "GET", "/").status == 200
