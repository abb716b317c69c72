"""An engine that no file can hold runs all the same; TensorRT and CUDA are mocks."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.backends import open_runner
from deploy.bundle import Bundle, open_bundle
from deploy.cuda import Cuda
from deploy.engine import ready_engine
from tests.engines import engines, lock, mocked
from tests.test_deploy_bundle import SIZE, tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    module, _, target = mocked()
    monkeypatch.setattr("deploy.trt.find_tensorrt", lambda: target.api)
    monkeypatch.setattr("deploy.trt.find_cuda", lambda: Cuda(module.cuda))
    return open_bundle(tiny_bundle(tmp_path).root)


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1 << 20))


def no_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELAB_ENGINES", "/proc/engines")


def full_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)


def full_for_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    no_room(monkeypatch)


@pytest.mark.parametrize("trouble", [no_room, no_right, full_at_the_end, full_for_the_lock])
def test_the_runner_goes_on_and_says_so(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Callable[[pytest.MonkeyPatch], None],
) -> None:
    trouble(monkeypatch)
    batch = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    with open_runner(bundle, "int8", "tensorrt") as runner:
        got = runner.infer({"image": batch})["logits"]
    told = capsys.readouterr().err
    assert told.count("WARNING") == 1
    assert "built anew the next time" in told
    with open_runner(bundle, "int8", threads=1) as other:
        np.testing.assert_array_equal(got, other.infer({"image": batch})["logits"])
    assert engines(bundle) == []


def test_one_that_is_kept_is_not_built_again(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    target = mocked()[2]
    lock_file = lock(bundle.root.parent)
    assert ready_engine(bundle, "fp32", target, None, print, must_keep=False, lock=lock_file).unkept is None
    for built in (True, False):
        with open_runner(bundle, "int8", "tensorrt"):
            pass
        assert ("built in" in capsys.readouterr().err) == built
