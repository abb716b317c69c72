"""The running demo goes on where it can, and says in one line what is wrong."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from deploy.backends import open_runner
from deploy.bundle import Bundle
from deploy.demo.moving import from_camera
from deploy.demo.pipeline import open_show
from deploy.demo.show import Lane
from deploy.errors import LabError
from deploy.runner import Arrays, Feed
from tests.demo_shows import FP32, INT8, LONG_S, RED, news, shows, threads_left, until, with_source
from tests.fake_camera import all_end, fake_camera, starts
from tests.films import cut_film, make_film
from tests.test_deploy_bundle import SPEC, tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    yield tiny_bundle(tmp_path)
    assert threads_left() == []


def test_a_listener_that_fails_or_has_left_is_not_called_again(bundle: Bundle, tmp_path: Path) -> None:
    calls: list[str] = []

    def fails() -> None:
        calls.append("fails")
        raise RuntimeError("a viewer's defect")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.demo.folder.PERIOD_S", 0.01)
        with open_show(bundle, str(tmp_path / "photos"), threads=1) as show:
            show.on_new(fails)
            leave = show.on_new(lambda: calls.append("leaves"))
            until(lambda: "leaves" in calls)
            leave()
            leave()
            with news(show) as until_news:
                number = show.latest().number  # type: ignore[union-attr]
                until_news(lambda: show.latest().number > number + 2)  # type: ignore[union-attr]
                before = calls.count("leaves")
                until_news(lambda: show.latest().number > number + 5)  # type: ignore[union-attr]
    assert calls.count("fails") == 1
    assert calls.count("leaves") == before


def test_a_camera_that_vanishes_is_looked_for_until_it_is_back(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.demo.moving.FIRST_PAUSE_S", 0.3)
    log = tmp_path / "log"
    with_source(monkeypatch, from_camera("camera:0", lambda: fake_camera(log, 2, "dies once")))
    with open_show(bundle, "camera:0", threads=1) as show:
        shows(show, lambda s: s.message == "camera:0: sh ended with exit code 3; looking for it again")
        assert show.status().state == "waiting"
        shows(show, lambda s: s.state == "playing" and s.message is None and len(starts(log)) == 2)
    assert all_end(log)


def test_a_video_that_ends_in_the_middle_of_a_frame_is_played_again(bundle: Bundle, tmp_path: Path) -> None:
    film = cut_film(make_film(tmp_path), tmp_path / "cut.webm")
    with open_show(bundle, str(film), threads=1, loop=False) as show:
        shows(show, lambda status: status.state == "ended")
        (number,) = re.findall(
            r"^cut\.webm: cut or damaged, played to frame (\d+) ", show.status().message or ""
        )
        assert 0 < int(number) < 10
    with open_show(bundle, str(film), threads=1) as show:
        shows(show, lambda status: status.state == "playing" and "cut or damaged" in (status.message or ""))
        shown = show.latest()
        assert shown is not None
        assert shown.image.shape == (60, 90, 3)


def test_only_the_monotonic_clock_counts(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.demo.folder.PERIOD_S", 0.01)
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock) * 10**9)
    with open_show(bundle, str(tmp_path / "photos"), threads=1) as show, news(show) as until_news:
        until_news(lambda: (show.status().fps or 0) > 1)
        shown = show.latest()
        assert shown is not None
        assert all(0 < answer.latency_ms < 1000 * LONG_S for answer in shown.answers)


class Failing:
    """A runner whose model fails when it is told to."""

    def __init__(self, runner: Any, fail: Event, error: BaseException) -> None:
        self._runner, self._fail, self._error = runner, fail, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.__exit__(None, None, None)

    def infer(self, feed: Feed) -> Arrays:
        if self._fail.is_set():
            raise self._error
        return dict(self._runner.infer(feed))


def test_each_runner_that_was_opened_is_closed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"opened": 0, "closed": 0}

    class Counted(Failing):
        def __exit__(self, *_: object) -> None:
            counts["closed"] += 1
            super().__exit__()

    def opener(bundle: Bundle, variant: str, backend: str, threads: int | None, in_turn: bool) -> Any:
        counts["opened"] += 1
        return Counted(open_runner(bundle, variant, backend, threads=threads), Event(), RuntimeError())

    monkeypatch.setattr("deploy.demo.side.open_runner", opener)
    with open_show(bundle, "upload", [FP32, INT8], threads=1) as show:
        show.switch(1, FP32)
        assert counts == {"opened": 3, "closed": 1}
        show.switch(1, FP32)
        assert counts == {"opened": 3, "closed": 1}
        assert show.classify(RED).answers[1].lane == FP32
    assert counts == {"opened": 3, "closed": 3}


def test_a_picture_that_cannot_be_looked_at_is_the_callers_trouble_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_show(bundle, "upload", threads=1) as show:
        with monkeypatch.context() as patch:
            patch.setattr("deploy.demo.classifier.preprocess", lambda image, spec: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                show.classify(RED)
        assert show.classify(RED).answers[0].top[0].name == "red"


def test_who_waits_is_told_when_the_demo_ends(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, go = Event(), Event()

    class Busy(Failing):
        def infer(self, feed: Feed) -> Arrays:
            busy.set()
            go.wait(LONG_S)
            return super().infer(feed)

    def opener(bundle: Bundle, variant: str, backend: str, threads: int | None, in_turn: bool) -> Any:
        return Busy(open_runner(bundle, variant, backend, threads=threads), Event(), RuntimeError())

    monkeypatch.setattr("deploy.demo.side.open_runner", opener)
    with ThreadPoolExecutor(3) as pool:
        with open_show(bundle, "upload", [FP32], threads=1) as show:
            first = pool.submit(show.classify, RED)
            assert busy.wait(LONG_S)
            waiting = pool.submit(show.classify, RED), pool.submit(show.switch, 0, INT8)
            classifier = show._classifier  # type: ignore[attr-defined]  # nothing else tells who waits
            until(lambda: classifier._asked and classifier._switched)
            threading.Timer(0.2, go.set).start()
        assert first.result(LONG_S).answers[0].top[0].name == "red"
        for one in waiting:
            with pytest.raises(LabError, match="has ended"):
                one.result(LONG_S)


def test_a_model_that_fails_in_the_middle_says_so_and_the_other_goes_on(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = Event()

    def opener(bundle: Bundle, variant: str, backend: str, threads: int | None, in_turn: bool) -> Any:
        runner = open_runner(bundle, variant, backend, threads=threads)
        return Failing(runner, fail, RuntimeError("out of\nmemory")) if variant == "int8" else runner

    monkeypatch.setattr("deploy.demo.side.open_runner", opener)
    monkeypatch.setattr("deploy.demo.folder.PERIOD_S", 0.01)
    with open_show(bundle, str(tmp_path / "photos"), threads=1) as show:
        shows(show, lambda status: None not in status.lane_fps)
        fail.set()
        said = "int8 (onnxruntime): the model failed: out of memory"
        shows(show, lambda status: status.message == said)
        fp32, int8 = show.classify(RED).answers
        assert (fp32.error, fp32.top[0].name) == (None, "red")
        assert (int8.error, int8.top, int8.latency_ms) == (said, (), 0.0)
        assert show.status().lane_fps[1] is None
        fail.clear()
        shows(show, lambda status: status.message is None and None not in status.lane_fps)


def test_a_lane_that_cannot_be_opened_leaves_the_other_running(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opener(bundle: Bundle, variant: str, backend: str, threads: int | None, in_turn: bool) -> Any:
        if variant == "int8":
            raise OSError(28, "No space left on device", "bundle.engines/int8.engine")
        return open_runner(bundle, variant, backend, threads=threads)

    monkeypatch.setattr("deploy.demo.side.open_runner", opener)
    with open_show(bundle, "upload", [FP32, INT8], threads=1) as show:
        assert "int8 (onnxruntime): cannot be opened: [Errno 28] No space left" in (
            show.status().message or ""
        )
        fp32, int8 = show.classify(RED).answers
        assert fp32.top[0].name == "red"
        assert "No space left" in (int8.error or "")
        with pytest.raises(LabError, match="No space left"):
            show.switch(0, INT8)
        assert show.status().lanes == (FP32, INT8)
    with pytest.raises(LabError, match="No space left"), open_show(bundle, "upload", [INT8], threads=1):
        pass


def test_where_the_best_backend_cannot_be_opened_the_next_one_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opener(bundle: Bundle, variant: str, backend: str, threads: int | None, in_turn: bool) -> Any:
        if backend == "onnxruntime":
            raise LabError("the disk is full")
        return open_runner(bundle, variant, backend, threads=threads)

    monkeypatch.setattr("deploy.demo.side.open_runner", opener)
    with open_show(bundle, "upload", threads=1) as show:
        assert show.status().lanes == (Lane("fp32", "openvino"), Lane("int8", "openvino"))
        assert "fp32 (onnxruntime): the disk is full" in (show.status().message or "")
        monkeypatch.undo()
        show.switch(0, FP32)
        assert "fp32" not in (show.status().message or "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": None}, "takes no image files"),
        ({"class_output": None}, "names no classes"),
        ({"input": replace(SPEC, class_names=())}, "names no classes"),
    ],
)
def test_what_classifies_no_images_is_refused(bundle: Bundle, change: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError, match=words), open_show(replace(bundle, **change), "upload"):
        pass


@pytest.mark.parametrize(
    ("source", "lanes", "words"),
    [
        ("nowhere", None, "source 'nowhere': no such file or folder"),
        ("camera:", None, "name the camera by its number"),
        ("camera:front", None, "name the camera by its number, such as camera:0"),
        ("csi:front", None, "name the camera by its number"),
        ("upload", [Lane("int9", "onnxruntime")], "no variant 'int9'"),
        ("upload", [Lane("int8", "abacus")], "backend 'abacus'"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    bundle: Bundle, source: str, lanes: list[Lane] | None, words: str
) -> None:
    with pytest.raises(LabError, match=words), open_show(bundle, source, lanes):
        pass


def test_a_file_that_cannot_be_played_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "notes.mp4").write_text("no pictures")
    with pytest.raises(LabError, match=r"notes\.mp4: "), open_show(bundle, str(tmp_path / "notes.mp4")):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabError, match="holds no image"), open_show(bundle, str(tmp_path / "empty")):
        pass
