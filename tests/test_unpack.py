"""Where a .pyz lies while it runs: made whole at each start, and never a place that others may write."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from deploy.archive import Archive, open_archive
from deploy.bundle import open_bundle
from deploy.errors import LabError
from deploy.unpack import cache_folder, unpacked
from tests.archives import entries_of, tiny_pyz


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return open_archive(tiny_pyz(tmp_path_factory.mktemp("unpack")))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_place_is_chosen_by_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("EDGELAB_CACHE", raising=False)
    assert cache_folder() == Path("/home/somebody/.cache/edgelab")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/edgelab")
    monkeypatch.setenv("EDGELAB_CACHE", "/named")
    assert cache_folder() == Path("/named")


def test_everything_is_there_and_for_its_owner_alone(archive: Archive, cache: Path) -> None:
    folder = unpacked(archive)
    assert folder.parent == cache
    assert folder.name.startswith("tiny-")
    assert folder.stat().st_mode & 0o777 == 0o700
    for name, content in entries_of(archive.path):
        if name in archive.files:
            place = folder / name if name.startswith("bundle/") else folder / "app" / name
            assert place.read_bytes() == content
    assert open_bundle(folder / "bundle").name == "tiny"


def test_what_is_altered_missing_or_strange_is_put_right_and_the_rest_left(
    archive: Archive, cache: Path
) -> None:
    folder = unpacked(archive)
    code, model = folder / "app" / "deploy" / "memory.py", folder / "bundle" / "models" / "int8.onnx"
    untouched = folder / "app" / "deploy" / "ort.py"
    before = untouched.stat().st_ino
    altered = code.read_bytes()[:-1] + b"#"
    code.write_bytes(altered)
    os.utime(code, (315532800, 315532800))
    model.write_bytes(model.read_bytes()[:-1] + b"x")  # of the same size
    (folder / "bundle" / "bundle.json").unlink()
    (folder / "app" / "numpy.py").write_text("raise SystemExit")
    sample = folder / "bundle" / "samples" / "000.png"
    size = sample.stat().st_size
    sample.unlink()
    sample.symlink_to("x" * size)  # as long and as old as the file was
    os.utime(sample, (315532800, 315532800), follow_symlinks=False)
    engines = folder / "bundle.engines" / "int8.engine"
    engines.parent.mkdir()
    engines.write_bytes(b"engine")

    assert unpacked(archive) == folder
    assert code.read_bytes() != altered
    assert not (folder / "app" / "numpy.py").exists()
    assert not sample.is_symlink()
    open_bundle(folder / "bundle")  # every SHA-256
    assert engines.read_bytes() == b"engine"
    assert untouched.stat().st_ino == before


def test_a_folder_that_others_may_write_is_not_used(
    archive: Archive, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unpacked(archive)
    folder.chmod(0o777)
    other = unpacked(archive)
    assert other.parent != cache
    assert "another user can write there: unpacked for this run only" in capsys.readouterr().err
    shutil.rmtree(other.parent)


def test_where_nothing_can_be_written_a_temporary_folder_is_taken(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGELAB_CACHE", str(tmp_path / "file"))
    folder = unpacked(archive)
    assert open_bundle(folder / "bundle").name == "tiny"
    assert f"note: {tmp_path / 'file'}" in capsys.readouterr().err
    shutil.rmtree(folder.parent)


Usage = namedtuple("Usage", "total used free")


def test_a_full_disk_is_told_and_leaves_nothing(
    archive: Archive, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a full disk answers: at first with too little room, then in the middle of a file."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 1 << 30, 3 << 20))
        with pytest.raises(LabError, match=r"it needs \d+ MiB: .*3 MiB are free.*EDGELAB_CACHE"):
            unpacked(archive)
    assert not cache.exists()

    def torn(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", torn)
    with pytest.raises(LabError, match=r"No space left on device.*free some space"):
        unpacked(archive)
    assert list(cache.iterdir()) == []
    assert list((tmp_path / "tmp").glob("*/*")) == []
