"""The running demo: what it shows, and what it takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.backends import open_runner
from deploy.bundle import Bundle
from deploy.demo.moving import from_camera
from deploy.demo.pipeline import open_show
from deploy.demo.show import Lane
from deploy.errors import LabError
from deploy.preprocess import load_image, preprocess
from tests.demo_shows import FP32, INT8, RED, news, shows, threads_left, until, with_source
from tests.fake_camera import all_end, fake_camera, frame_number
from tests.test_deploy_bundle import SPEC, tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    yield tiny_bundle(tmp_path)
    assert threads_left() == []


def test_a_folder_is_shown_with_what_both_lanes_say(bundle: Bundle, tmp_path: Path) -> None:
    with open_show(bundle, str(tmp_path / "photos" / "red"), threads=1) as show, news(show) as until_news:
        until_news(lambda: show.latest() is not None)
        shown, status = show.latest(), show.status()
        assert shown is not None
        assert shown.image.shape == (10, 12, 3)
        assert [answer.lane for answer in shown.answers] == [FP32, INT8]
        for answer in shown.answers:
            assert [guess.name for guess in answer.top] == ["red", "green"]
            assert sum(guess.probability for guess in answer.top) == pytest.approx(1)
            assert answer.latency_ms > 0
            assert answer.error is None
            with open_runner(bundle, answer.lane.variant, threads=1) as runner:
                (logits,) = runner.infer({"image": preprocess(shown.image, SPEC)[None]})["logits"]
            odds = np.log(answer.top[0].probability / answer.top[1].probability)
            assert odds == pytest.approx(logits[0] - logits[1], rel=1e-4)
        assert (status.state, status.message, status.lanes) == ("playing", None, (FP32, INT8))
        assert {FP32, INT8, Lane("fp32", "openvino")} <= set(status.choices)
        assert all(rate is not None and rate > 0 for rate in status.lane_fps)


def test_a_folder_goes_on_from_its_start_and_its_numbers_grow(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.demo.folder.PERIOD_S", 0.01)
    (tmp_path / "photos" / "red" / "broken.png").write_bytes(b"no image")
    (tmp_path / "photos" / ".hidden").mkdir()
    (tmp_path / "photos" / ".hidden" / "x.png").write_bytes(b"no image")
    numbers, messages = [], set()
    with open_show(bundle, str(tmp_path / "photos"), threads=1) as show:

        def look() -> None:
            shown = show.latest()
            assert shown is not None
            numbers.append(shown.number)

        show.on_new(look)
        with news(show) as until_news:
            until_news(lambda: len(numbers) > 20)

        def complains() -> bool:
            messages.add(show.status().message)
            return "broken.png" in str(messages)

        until(complains)
        assert show.status().fps is not None
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert ".hidden" not in str(messages)


def test_it_ends_with_its_source_where_that_is_wanted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.demo.folder.PERIOD_S", 0.0)
    with open_show(bundle, str(tmp_path / "photos"), threads=1, loop=False) as show:
        shows(show, lambda status: status.state == "ended")
        assert show.status().message == f"{tmp_path / 'photos'}: each of its 6 images was shown"
        assert show.classify(RED).answers[0].top[0].name == "red"


def test_pictures_are_answered_while_nothing_is_captured(bundle: Bundle) -> None:
    with open_show(bundle, "upload", threads=1) as show:
        assert show.status().state == "waiting"
        results: dict[int, str] = {}

        def ask(number: int) -> None:
            image = np.full((9, 9, 3), ((200, 20, 20), (20, 200, 20))[number % 2], np.uint8)
            for _ in range(5):
                results[number] = show.classify(image).answers[0].top[0].name

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {0: "red", 1: "green", 2: "red"}
        assert show.classify(RED).number == 0
        assert show.latest() is None
        for wrong in (
            RED[0],
            RED.astype(np.float32),
            RED[:, :, :2],
            RED[:0],
            np.empty((9000, 9000, 3), np.uint8),
        ):
            with pytest.raises(LabError, match="the picture"):
                show.classify(np.asarray(wrong))
        assert show.classify(RED).answers[1].top[0].name == "red"
    with pytest.raises(LabError, match="has ended"):
        show.classify(RED)
    with pytest.raises(LabError, match="has ended"):
        show.switch(0, Lane("fp32", "openvino"))


def test_lanes_are_switched_while_pictures_come(bundle: Bundle, tmp_path: Path) -> None:
    camera = from_camera("camera:0", lambda: fake_camera(tmp_path / "log", 1_000_000, "stop"))
    with pytest.MonkeyPatch.context() as patch:
        with_source(patch, camera)
        with open_show(bundle, "camera:0", threads=1) as show, news(show) as until_news:
            until_news(lambda: show.latest() is not None)
            lane = Lane("int8", "openvino")
            show.switch(0, lane)
            assert show.status().lanes == (lane, INT8)
            seen = show.latest()
            assert seen is not None
            # the picture that was being looked at is not of the new lane yet
            until_news(lambda: show.latest().number > seen.number + 1)  # type: ignore[union-attr]
            shown = show.latest()
            assert shown is not None
            assert [answer.lane for answer in shown.answers] == [lane, INT8]
            for side, wrong, words in (
                (0, Lane("int9", "onnxruntime"), "no variant 'int9'"),
                (0, Lane("fp32", "abacus"), "backend 'abacus' is not known"),
                (2, FP32, "side 2: there are 2"),
                (0, Lane("int8", "tensorrt"), "int8 .tensorrt.: cannot be run"),
                (1, Lane("fp32", "tensorrt"), "fp32 .tensorrt.: "),
            ):
                with pytest.raises(LabError, match=words):
                    show.switch(side, wrong)
            assert show.status().lanes == (lane, INT8)
            assert show.status().message is None
    assert all_end(tmp_path / "log")


def test_a_slow_classifier_sees_the_newest_picture_and_a_slow_viewer_is_no_brake(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with_source(monkeypatch, from_camera("camera:0", lambda: fake_camera(log, 2000, "hang")))
    with open_show(bundle, "camera:0", threads=1) as show, news(show) as until_news:
        until_news(lambda: frame_number(show.latest().image) == 2000 if show.latest() else False)  # type: ignore[union-attr]
        shown = show.latest()
        assert shown is not None
        assert shown.number <= 2000
        for _ in range(3):
            show.classify(RED)
        assert show.latest() is shown  # no picture is looked at twice


def test_a_large_photo_is_shown_as_it_is(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    Image.new("RGB", (700, 500), (20, 180, 60)).save(tmp_path / "large" / "x.jpg")
    with open_show(bundle, str(tmp_path / "large"), threads=1) as show, news(show) as until_news:
        until_news(lambda: show.latest() is not None)
        shown = show.latest()
        assert shown is not None
        assert np.array_equal(shown.image, load_image(tmp_path / "large" / "x.jpg"))
        assert shown.answers[0].top[0].name == "green"
