"""The .pyz that runs: by a Python that has numpy and ONNX Runtime, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.__main__ import main
from deploy.archive import LISTING
from optimize.archive import write_archive
from tests.archives import Entries, entries_of, listed_anew, replaced, run_pyz, tiny_pyz, write_entries


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pyz(tmp_path_factory.mktemp("pyz"))


@pytest.fixture(scope="module")
def entries(whole: Path) -> Entries:
    return entries_of(whole)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_it_verifies_and_measures_itself(whole: Path, cache: Path) -> None:
    verified = run_pyz(whole, "verify", cache=cache)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert "ok    tiny.pyz: " in verified.stdout
    assert "int8, optimised" in verified.stdout
    # With the peak of memory, which a child process measures.
    measured = run_pyz(whole, "bench", "--seconds", "0.003", "--warmup", "0", "--threads", "1", cache=cache)
    assert measured.returncode == 0, measured.stderr
    assert "speed-up" in measured.stdout


def test_targets_come_with_it(whole: Path, cache: Path) -> None:
    """Also where there is no PyYAML."""
    done = subprocess.run(
        [sys.executable, "-S", str(whole), "targets"],
        env={"EDGELAB_CACHE": str(cache), "PYTHONPATH": str(numpy_alone(cache))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "orin_nano_8gb" in done.stdout
    assert "`python3 tiny.pyz targets NAME`" in done.stdout


def numpy_alone(folder: Path) -> Path:
    """A folder with numpy and nothing else that is installed here."""
    import numpy

    site = folder / "numpy-alone"
    site.mkdir(exist_ok=True)
    packages = Path(numpy.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists() and not (site / name).exists():
            (site / name).symlink_to(packages / name)
    return site


def test_without_numpy_it_says_what_installs_it(whole: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(whole), "verify"],
        env={"EDGELAB_CACHE": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: numpy cannot be imported")
    assert "-m pip install numpy" in done.stderr
    assert done.stderr.count("\n") == 1


def old_pythons() -> list[str]:
    """Of before 3.10, as far as there are any here."""
    found = [shutil.which(f"python{version}") for version in ("2.7", "3.6", "3.7", "3.8", "3.9")]
    found += [str(path) for path in Path.home().glob(".pyenv/versions/[23].[5-9]*/bin/python")]
    return [
        path
        for path in found
        if path and not subprocess.run([path, "-c", ""], capture_output=True).returncode
    ]


def test_an_old_python_is_told_so_in_a_line(whole: Path, tmp_path: Path) -> None:
    pythons = old_pythons()
    if not pythons:
        pytest.skip("no Python older than 3.10 here")
    for python in pythons:
        done = subprocess.run([python, str(whole), "verify"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "is too old, 3.10 is the least" in done.stderr
        assert done.stderr.count("\n") == 1


def test_help_and_errors_name_the_file(whole: Path, cache: Path) -> None:
    assert "usage: python3 tiny.pyz" in run_pyz(whole, "--help", cache=cache).stdout
    told = run_pyz(whole, "bench", "--help", cache=cache).stdout
    assert "usage: python3 tiny.pyz bench" in told
    assert "example: python3 tiny.pyz bench --images photos/test" in told
    assert "BUNDLE" not in told
    assert "as `python3 tiny.pyz targets`" in " ".join(
        run_pyz(whole, "estimate", "-h", cache=cache).stdout.split()
    )
    wrong = run_pyz(whole, "verify", "--backend", "tpu", cache=cache)
    assert wrong.returncode == 2
    assert "error: backend 'tpu' is not known" in wrong.stderr


@pytest.mark.parametrize(
    "name", ["deploy/start.py", "deploy/backends.py", "bundle/models/int8.onnx", LISTING]
)
def test_a_damaged_file_says_so_and_runs_nothing(entries: Entries, tmp_path: Path, name: str) -> None:
    content = dict(entries)[name]
    damaged = write_entries(
        tmp_path / "bad.pyz", replaced(entries, name, content[:-9] + b"\n" + content[-8:])
    )
    done = run_pyz(damaged, "verify", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "again" in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("cache/*"))


def test_damage_that_its_unpacked_files_hide_is_told_by_verify(whole: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny.pyz"
    copy.write_bytes(whole.read_bytes())
    assert run_pyz(copy, "verify", cache=tmp_path / "cache").returncode == 0
    data = bytearray(copy.read_bytes())
    data[data.index(b"PK\3\4") + 60] ^= 1
    copy.write_bytes(data)
    done = run_pyz(copy, "verify", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "copy or write the file again" in done.stderr


def test_every_command_takes_a_pyz_in_place_of_a_bundle(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGELAB_CACHE", str(tmp_path))
    assert main(["verify", str(whole)]) == 0
    assert "files have their SHA-256; its signature was not asked for" in capsys.readouterr().out
    assert main(["bench", str(whole), "--seconds", "0.003", "--warmup", "0", "--threads", "1"]) == 0
    assert not list(tmp_path.glob("*/app"))  # its code is not even unpacked
    assert main(["verify", str(tmp_path / "nowhere.pyz")]) == 2
    assert "nowhere.pyz: No such file" in capsys.readouterr().err


def test_a_forged_bundle_is_refused_by_its_own_list(
    entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever writes the listing anew still has bundle.json against him."""
    monkeypatch.setenv("EDGELAB_CACHE", str(tmp_path / "cache"))
    forged = replaced(entries, "bundle/models/int8.onnx", b"x")
    bad = write_entries(tmp_path / "bad.pyz", listed_anew(forged))
    assert main(["verify", str(bad)]) == 2
    assert "models/int8.onnx was altered" in capsys.readouterr().err
    manifest = dict(entries)["bundle/bundle.json"].replace(b'"samples/000.png"', b'"../x"')
    assert (
        main(
            [
                "verify",
                str(write_entries(bad, listed_anew(replaced(entries, "bundle/bundle.json", manifest)))),
            ]
        )
        == 2
    )
    assert "lies outside its folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "bench", "verify", "classify", "demo", "build", "estimate"])
def test_each_command_with_a_bundle_can_demand_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--require-signature" in capsys.readouterr().out


def test_a_signature_is_demanded(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGELAB_CACHE", str(tmp_path / "cache"))
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)], check=True)
    subprocess.run(["openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public)], check=True)
    signed = write_archive(whole.with_name("bundle"), tmp_path / "signed.pyz", key)
    asked = ("verify", "--require-signature", public)
    done = run_pyz(signed, *asked, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert f"signed by the owner of {public}" in done.stdout
    assert main(["bench", str(whole), "--require-signature", str(public)]) == 2
    assert "is not signed, and a signature is required" in capsys.readouterr().err
    refused = run_pyz(whole, *asked, cache=tmp_path / "cache")
    assert refused.returncode == 2
    assert "is not signed" in refused.stderr
    assert main(["verify", str(whole.with_name("bundle")), "--require-signature", str(public)]) == 2
    assert "only a .pyz can be signed" in capsys.readouterr().err


def test_it_classifies_an_image(whole: Path, cache: Path) -> None:
    done = run_pyz(whole, "classify", "--variant", "int8", cache=cache)
    assert done.returncode == 0, done.stderr
    first, best, *_ = done.stdout.splitlines()
    assert "000.png: int8, onnxruntime, " in first
    assert best.split()[-1] == "red"
    assert run_pyz(whole, "classify", "--image", "nowhere.png", cache=cache).returncode == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error(whole: Path, cache: Path, unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, str(whole), "targets"],
        env={"EDGELAB_CACHE": str(cache), "PYTHONUNBUFFERED": unbuffered},
        stdout=write, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
