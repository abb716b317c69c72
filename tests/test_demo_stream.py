"""The live stream: what viewers see, and that none of them holds another or the pictures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from deploy.demo.limits import MAX_VIEWERS
from deploy.demo.messages import agree
from deploy.demo.server import Serving, serve
from deploy.demo.show import Answer, Guess
from tests.demo_client import Viewer, ask
from tests.fake_show import CHOICES, FakeShow, moving, playing


@pytest.fixture
def show() -> FakeShow:
    return FakeShow()


@pytest.fixture
def served(show: FakeShow) -> Iterator[Serving]:
    with serve(show, title="flowers") as serving:
        yield serving


def test_a_viewer_sees_the_picture_with_its_answers(served: Serving, show: FakeShow) -> None:
    show.play(moving(1))
    with Viewer(served.port) as viewer:
        message, picture = viewer.message()
    assert message["title"] == "flowers"
    assert picture[:2] == b"\xff\xd8"
    shown, status = message["shown"], message["status"]
    assert (shown["number"], shown["width"], shown["height"]) == (1, 640, 480)
    assert [answer["variant"] for answer in shown["answers"]] == ["fp32", "int8"]
    assert len(shown["answers"][0]["top"]) == 5
    assert shown["answers"][1]["latency_ms"] == 1.9
    assert shown["agree"] is True
    assert status["lanes"][1] == {"variant": "int8", "backend": "onnxruntime"}
    assert len(status["choices"]) == 4
    assert status["watts_missing"] == "nothing measures power here"


def test_a_viewer_hears_something_where_no_picture_comes(served: Serving, show: FakeShow) -> None:
    with Viewer(served.port) as viewer:
        assert viewer.message()[0]["shown"] is None
        show.play(moving(1))
        assert viewer.message()[1]
        message, picture = viewer.message()
        assert message["shown"]["number"] == 1
        assert picture == b""  # the same as before
        show.changes = {"state": "failed", "message": "the camera is gone; plug it in"}
        while viewer.message()[0]["status"]["state"] != "failed":
            pass


def test_numbers_and_picture_are_of_the_same_picture(served: Serving, show: FakeShow) -> None:
    with playing(show, fps=200), Viewer(served.port) as viewer:
        numbers = []
        for _ in range(20):
            message, picture = viewer.message()
            if message["shown"] is not None and picture:
                numbers.append(message["shown"]["number"])
        assert numbers == sorted(set(numbers))
        assert len(numbers) > 10


def test_a_viewer_that_takes_nothing_holds_nobody(served: Serving, show: FakeShow) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    with Viewer(served.port) as stalled, Viewer(served.port) as viewer:
        for number in range(1, 40):  # 8 MB, more than every buffer between
            show.play(noise)
            while (message := viewer.message()[0])["shown"] is None or message["shown"]["number"] < number:
                pass
        newest, seen = 0, 0
        while newest < 39:
            shown = stalled.message()[0]["shown"]
            newest = shown["number"] if shown else 0
            seen += 1
        assert seen < 39, "it was to miss pictures, not to get all of them late"


def test_nothing_is_encoded_while_nobody_watches(
    served: Serving, show: FakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()
    real = show.on_new

    def on_new(call: Any) -> Any:
        forget = real(call)

        def leave() -> None:
            forget()
            left.set()

        return leave

    monkeypatch.setattr(show, "on_new", on_new)
    assert show.calls == []
    with Viewer(served.port) as viewer:
        viewer.message()
        assert len(show.calls) == 1
    assert left.wait(30)
    assert show.calls == []


def test_viewers_share_one_encoding(served: Serving, show: FakeShow, monkeypatch: pytest.MonkeyPatch) -> None:
    count = []

    def encode(image: object) -> bytes:
        count.append(1)
        return b"\xff\xd8 a picture"

    monkeypatch.setattr("deploy.demo.feed.encode_frame", encode)
    show.play(moving(1))
    viewers = [Viewer(served.port) for _ in range(3)]
    assert [viewer.message()[1] for viewer in viewers] == [b"\xff\xd8 a picture"] * 3
    assert len(count) == 1
    for viewer in viewers:
        viewer.__exit__()


def test_one_viewer_too_many(served: Serving) -> None:
    viewers = [Viewer(served.port) for _ in range(MAX_VIEWERS)]
    for viewer in viewers:
        viewer.message()
    reply = ask(served.port, "GET", "/stream")
    assert (reply.status, reply.json()["error"]) == (503, "16 viewers watch already; close one")
    for viewer in viewers:
        viewer.__exit__()


def test_whether_the_sides_agree() -> None:
    def answers(*names: str) -> list[Answer]:
        return [Answer(CHOICES[0], "fp32", (Guess(name, 0.5),) if name else (), 1.0) for name in names]

    assert agree(answers("a", "a")) is True
    assert agree(answers("a", "b")) is False
    assert agree(answers("a")) is None
    assert agree(answers("a", "")) is None
