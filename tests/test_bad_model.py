"""A bundle whose every byte is as listed, and whose model is none: each command says so in a line."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest

from deploy.__main__ import main
from deploy.bundle import Bundle, open_bundle
from optimize.archive import write_archive
from tests.archives import run_pyz
from tests.test_deploy_bundle import tiny_bundle

CONTENTS = {
    "empty": b"",
    "text": b"this is no model\n" * 40,
    "zip": b"PK\3\4" + bytes(200),
    "page": b"<!doctype html><title>404</title>",
    "zeros": bytes(5000),
}


@pytest.fixture(params=list(CONTENTS))
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    made = tiny_bundle(tmp_path)
    for model in ("models/fp32.onnx", "models/int8.onnx"):
        (made.root / model).write_bytes(CONTENTS[request.param])
    return listed_anew(made.root)


def listed_anew(root: Path) -> Bundle:
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["files"] = {n: sha256((root / n).read_bytes()).hexdigest() for n in manifest["files"]}
    (root / "bundle.json").write_text(json.dumps(manifest))
    return open_bundle(root)


@pytest.mark.parametrize(
    "command",
    [
        ["verify"],
        ["bench", "--seconds", "0.01"],
        ["classify"],
        ["estimate", "--target", "orin_nano_8gb"],
        ["demo", "--port", "0"],
        ["demo", "--terminal"],
    ],
    ids=" ".join,
)
def test_it_is_told(bundle: Bundle, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command[0], str(bundle.root), *command[1:]]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "fp32" in told
    assert told.count("\n") == 1


def test_the_one_file_says_it_too(bundle: Bundle, tmp_path: Path) -> None:
    done = run_pyz(write_archive(bundle.root, tmp_path / "bad.pyz"), "verify", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
