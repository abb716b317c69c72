"""The .pyz as a file: the same bytes each time, and nothing is opened that it does not account for."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from deploy.archive import LISTING, SHEBANG, SIGNATURE, check_all, open_archive
from deploy.bundle import open_bundle
from deploy.errors import LabError
from deploy.signature import require_signature
from optimize import archive as writing
from optimize.archive import archive_files, write_archive
from optimize.bundle import main
from tests.archives import Entries, entries_of, listed_anew, replaced, tiny_pyz, write_entries


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pyz(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def entries(whole: Path) -> Entries:
    return entries_of(whole)


def test_the_same_inputs_give_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.with_name("bundle"), tmp_path / "elsewhere")  # other dates, another place
    again = write_archive(tmp_path / "elsewhere", tmp_path / "other.pyz")
    assert again.read_bytes() == whole.read_bytes()


def test_it_holds_the_bundle_the_runtime_and_its_libraries_with_licences(whole: Path) -> None:
    files = open_archive(whole).files
    bundle = open_bundle(whole.with_name("bundle"))
    assert {name for name in files if name.startswith("bundle/")} == {
        f"bundle/{name}" for name in [*bundle.files, "bundle.json"]
    }
    assert {
        "deploy/memory.py",
        "deploy/estimator.json",
        "deploy/demo/show.py",
        "configs/jetpacks.yaml",
    } <= set(files)
    assert {"vendor/uvicorn/main.py", "vendor/pynvml.py", "vendor/yaml/loader.py", "LICENSE"} <= set(files)
    for library in ("uvicorn", "h11", "click", "typing_extensions", "pyyaml"):
        version = metadata.version(library)
        assert [n for n in files if n.startswith(f"vendor/{library}-{version}.dist-info/licenses/LICENSE")]
    assert f"vendor/nvidia_ml_py-{metadata.version('nvidia-ml-py')}.dist-info/METADATA" in files
    assert [n for n in files if n.endswith((".so", ".pyc")) or "RECORD" in n] == []
    assert check_all(open_archive(whole)) == len(files)
    assert whole.stat().st_mode & 0o111


def test_a_library_that_is_compiled_or_missing_is_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LIBRARIES", ("numpy",))
    with pytest.raises(LabError, match=r"numpy .* is not pure Python"):
        archive_files(whole.with_name("bundle"))
    monkeypatch.setattr(writing, "LIBRARIES", ("no-such-library",))
    with pytest.raises(LabError, match="pip install no-such-library"):
        archive_files(whole.with_name("bundle"))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_any_damaged_byte_is_found(whole: Path, tmp_path: Path) -> None:
    """In the model, the code, the listing, the zip's own records, the shell's line."""
    data = whole.read_bytes()
    with zipfile.ZipFile(whole) as opened:
        places = {
            name: opened.getinfo(name).header_offset + 30 + len(name) + 5
            for name in ("bundle/models/fp32.onnx", "deploy/memory.py", LISTING, "bundle/bundle.json")
        }
    broken = tmp_path / "broken.pyz"
    for at in [*places.values(), 0, 30, len(data) - 1, len(data) - 22, *range(0, len(data), len(data) // 40)]:
        broken.write_bytes(flipped(data, at))
        with pytest.raises(LabError, match=r"broken\.pyz: .*(again|do not use|update edgelab)"):
            check_all(open_archive(broken))


def test_content_is_held_against_its_sha256_and_not_its_crc_alone(entries: Entries, tmp_path: Path) -> None:
    other = write_entries(
        tmp_path / "other.pyz", replaced(entries, "bundle/models/int8.onnx", b"another model")
    )
    with pytest.raises(LabError, match=r"bundle/models/int8\.onnx was altered"):
        check_all(open_archive(other))


@pytest.mark.parametrize("keep", [0, 10, 5000, -1, -30])
def test_a_file_that_is_cut_short_is_refused(whole: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut.pyz").write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(
        LabError, match=r"cut\.pyz: no whole \.pyz of edgelab .*; copy or write the file again"
    ):
        open_archive(tmp_path / "cut.pyz")


def test_what_stands_before_behind_or_between_is_refused(
    whole: Path, entries: Entries, tmp_path: Path
) -> None:
    data = whole.read_bytes()
    strange = tmp_path / "strange.pyz"
    for content in (
        data + b"x",
        data + b"\0" * 70_000,
        b"#!/bin/sh\n" + data,
        data[len(SHEBANG) :],
        data + data,
    ):
        strange.write_bytes(content)
        with pytest.raises(LabError, match=r"no whole \.pyz"):
            open_archive(strange)
    with zipfile.ZipFile(write_entries(strange, entries), "a") as opened:
        opened.comment = b"x"
    with pytest.raises(LabError, match=r"no whole \.pyz"):
        open_archive(strange)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "bundle/../../x", "bundle\\x", "c:x", ".hidden", "deploy/.x", "a//b", "a/", "ä", ""],
)
def test_a_name_that_leads_out_is_refused(entries: Entries, tmp_path: Path, name: str) -> None:
    bad = write_entries(tmp_path / "bad.pyz", listed_anew([(name, b"x"), *entries]))
    with pytest.raises(LabError, match=r"bad\.pyz: (entry .* lies outside|no whole)"):
        open_archive(bad)


def test_an_entry_that_is_unlisted_missing_or_there_twice_is_refused(
    entries: Entries, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pyz"
    with pytest.raises(LabError, match=r"not in its list: \['deploy/stranger.py'\]"):
        open_archive(write_entries(bad, [("deploy/stranger.py", b"x"), *entries]))
    with pytest.raises(LabError, match=r"listed and not there: \['deploy/memory.py'\]"):
        open_archive(write_entries(bad, [(n, c) for n, c in entries if n != "deploy/memory.py"]))
    with pytest.warns(UserWarning, match="Duplicate"):
        write_entries(bad, [("deploy/memory.py", b"x"), *entries])
    with pytest.raises(LabError, match=r"twice in it: \['deploy/memory.py'\]"):
        open_archive(bad)


def test_links_and_compressed_entries_are_refused(entries: Entries, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pyz"
    with pytest.raises(LabError, match=r"'deploy/memory\.py' is no plain file; do not use"):
        open_archive(write_entries(bad, entries, modes={"deploy/memory.py": 0o120777}))
    with pytest.raises(LabError, match=r"its record of .* is not as we write it"):
        open_archive(write_entries(bad, entries, compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (b"{", "archive.json is not JSON"),
        (b"[]", "schema None must be an integer from 1 to 1"),
        (b'{"schema": true, "files": {}}', "schema True must be"),
        (b'{"schema": 2, "files": {}}', "schema 2, this edgelab reads up to 1; update edgelab"),
        (b'{"schema": 1}', "must hold `schema` and `files`"),
        (b'{"schema": 1, "files": {"a": 1}}', "a SHA-256 is no text"),
    ],
)
def test_a_listing_that_is_none_is_refused(
    entries: Entries, tmp_path: Path, listing: bytes, message: str
) -> None:
    with pytest.raises(LabError, match=message):
        open_archive(write_entries(tmp_path / "bad.pyz", replaced(entries, LISTING, listing)))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem and public.pem, as the commands in the documentation make them."""
    folder = tmp_path_factory.mktemp("keys")
    for command in (
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "key.pem"],
        ["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem"],
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "other.pem"],
        ["openssl", "pkey", "-in", "other.pem", "-pubout", "-out", "other-public.pem"],
        ["openssl", "genpkey", "-algorithm", "RSA", "-out", "rsa.pem"],
        ["openssl", "pkey", "-in", "rsa.pem", "-pubout", "-out", "rsa-public.pem"],
    ):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def test_a_signature_is_of_the_key_and_of_every_entry(
    whole: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = tmp_path / "signed.pyz"
    arguments = [str(whole.with_name("bundle")), "--pyz", str(signed), "--sign", str(keys / "key.pem")]
    assert main(arguments) == 0
    assert "MiB, signed" in capsys.readouterr().out
    first = signed.read_bytes()
    assert main(arguments) == 0
    assert signed.read_bytes() == first
    require_signature(open_archive(signed), keys / "public.pem")

    with pytest.raises(LabError, match="its signature is not of the key"):
        require_signature(open_archive(signed), keys / "other-public.pem")
    with pytest.raises(LabError, match="no public key of Ed25519"):
        require_signature(open_archive(signed), keys / "rsa-public.pem")
    with pytest.raises(LabError, match="no key in PEM"):
        require_signature(open_archive(signed), signed)
    with pytest.raises(LabError, match=r"nowhere\.pem: No such file"):
        require_signature(open_archive(signed), tmp_path / "nowhere.pem")
    with pytest.raises(LabError, match="is not signed, and a signature is required"):
        require_signature(open_archive(whole), keys / "public.pem")

    forged = replaced(entries_of(signed), "deploy/memory.py", b"print('mine')")
    bad = write_entries(tmp_path / "bad.pyz", listed_anew(forged))
    check_all(open_archive(bad))  # whole, for who forges knows how to
    with pytest.raises(LabError, match="its signature is not of the key"):
        require_signature(open_archive(bad), keys / "public.pem")
    short = write_entries(bad, replaced(entries_of(signed), SIGNATURE, b"x"))
    with pytest.raises(LabError, match="its signature is not of the key"):
        require_signature(open_archive(short), keys / "public.pem")


def test_a_key_that_cannot_sign_leaves_nothing(
    whole: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "a.pyz"
    assert main([str(whole.with_name("bundle")), "--pyz", str(out), "--sign", str(keys / "rsa.pem")]) == 2
    assert "no private key of Ed25519" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


def test_a_bundle_that_is_damaged_or_a_place_that_is_none_is_told(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole.with_name("bundle"), tmp_path / "bundle")
    assert main([str(tmp_path / "bundle"), "--pyz", "/proc/a.pyz"]) == 2
    assert "/proc/a.pyz: cannot be written" in capsys.readouterr().err
    assert main([str(tmp_path / "bundle"), "--pyz", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    (tmp_path / "bundle" / "models" / "fp32.onnx").write_bytes(b"x")
    assert main([str(tmp_path / "bundle"), "--pyz", str(tmp_path / "a.pyz")]) == 2
    assert "models/fp32.onnx was altered" in capsys.readouterr().err
    assert not (tmp_path / "a.pyz").exists()


def test_it_is_named_after_the_bundle(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole.with_name("bundle"), tmp_path / "bundle")
    assert main([str(tmp_path / "bundle"), "--pyz"]) == 0
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["name"] == "tiny"
    assert (tmp_path / "tiny.pyz").read_bytes() == whole.read_bytes()
    assert str(tmp_path / "tiny.pyz") in capsys.readouterr().out
