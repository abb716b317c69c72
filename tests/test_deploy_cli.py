"""`python -m deploy`: what is printed, what is written, and which exit code."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.bundle import Bundle, write_bundle
from deploy.errors import LabError
from deploy.machine import usable_cores
from deploy.power import PowerSample
from deploy.results import read_measurements
from deploy.verify import verify
from tests.test_bench_turns import Meter
from tests.test_deploy_bundle import SPEC, tiny_bundle

QUICK = ["--seconds", "0.003", "--warmup", "0", "--threads", "1", "--batch", "1", "4"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("cli"))


def test_bench_measures_every_variant(
    shared: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, photos = tmp_path / "results.jsonl", shared.root.parent / "photos"
    assert main(["bench", str(shared.root), "--images", str(photos), "--out", str(out), *QUICK]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    names = ["fp32, batch 1", "fp32, batch 4", "int8, batch 1", "int8, batch 4"]
    assert [line[:13] for line in lines[2:6]] == names
    found = read_measurements(out)
    kinds = [("latency", 1), ("latency", 4), ("throughput", 1), ("throughput", 4)]
    assert [(m.variant, m.kind, m.batch) for m in found] == [(v, *k) for v in ("fp32", "int8") for k in kinds]
    for m in found:
        assert m.accuracy.top1 == 1.0
        assert m.accuracy.num_images == 6
        assert m.accuracy.agreement_with_fp32 == 1.0
        assert m.sha256 == shared.files[shared.variant(m.variant).file]
        assert (m.threads, m.in_flight, m.inside) == (1, 1, "host")
        assert m.rule.count == sum(turn.count for turn in m.turns) >= 10
        assert m.states is not None
        assert len(m.states.during) == 2 * m.rule.rounds
        assert m.peak_memory_mib is None or 20 < m.peak_memory_mib < 2000
        if m.kind == "latency":
            assert m.rule.count == len(m.latency_samples_ms)
            assert m.latency is not None
            assert m.throughput_images_per_s is None
        else:
            assert m.throughput_images_per_s is not None
            assert m.latency is None


def test_bench_measures_little_when_nothing_is_asked(shared: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    assert main(["bench", str(shared.root), "--out", str(out), *QUICK[:6]]) == 0
    found = [(m.variant, m.kind, m.batch) for m in read_measurements(out)]
    kinds = [("latency", 1), ("throughput", 32)]
    assert found == [(v, *k) for v in ("fp32", "int8") for k in kinds]


def test_bench_from_image_files_and_without_copies(
    shared: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    options = ["--variant", "int8", "--with-preprocessing", "--no-copies", "--no-energy", "--out", str(out)]
    assert main(["bench", str(shared.root), *options, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "int8, batch 4, from files" in printed
    assert "without copies: onnxruntime reads the caller's array where it lies" in printed
    assert "energy: not measured, as asked" in printed
    found = {(m.kind, m.batch, m.inside): m for m in read_measurements(out)}
    assert [key for key in found if key[2] != "host"] == [("latency", 1, "image"), ("latency", 4, "image")]
    whole, host = found["latency", 4, "image"], found["latency", 4, "host"]
    assert "decoding and preprocessing of image files" in whole.rule.inside_the_clock
    assert whole.latency is not None
    assert host.latency is not None
    assert whole.latency.min_ms > host.latency.min_ms  # four PNG files are decoded as well


@pytest.mark.parametrize("locked", [False, True])
def test_energy_that_is_asked_for_and_not_to_be_had_is_an_error(
    shared: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], locked: bool
) -> None:
    def nothing(**_: object) -> None:
        raise LabError("power: nothing here measures it: take a meter")

    class Locked(Meter):
        """There, but not for this user."""

        def read(self) -> PowerSample:
            raise LabError("power: nothing here measures it: take a meter")

    monkeypatch.setattr("deploy.cli_bench.find_meter", (lambda **_: Locked()) if locked else nothing)
    assert main(["bench", str(shared.root), "--energy", *QUICK]) == 2
    assert capsys.readouterr().err == "error: power: nothing here measures it: take a meter\n"
    assert main(["bench", str(shared.root), *QUICK]) == 0
    assert "energy: not measured: nothing here measures it: take a meter\n" in capsys.readouterr().out


def test_ctrl_c_leaves_no_half_results(
    shared: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deploy.bench.take_turns", stop)
    out = tmp_path / "results.jsonl"
    assert main(["bench", str(shared.root), "--out", str(out), *QUICK]) == 130
    assert capsys.readouterr().err == "cancelled: nothing was written\n"
    assert not out.exists()


def test_bench_of_one_variant_without_images(shared: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(shared.root), "--variant", "int8", *QUICK]) == 0
    (row,) = capsys.readouterr().out.splitlines()[2:3]
    assert row.split()[:6] == ["int8,", "batch", "1", "int8", "-", "-"]


def test_verify_passes_a_good_bundle(shared: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    photos = shared.root.parent / "photos"
    assert main(["verify", str(shared.root), "--images", str(photos)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "ok", "ok", "ok", "info", "info"]
    assert "top-1 100.00% on 6 images; the bundle records 100.00%" in lines[-1]


def rewritten(bundle: Bundle, folder: Path, change: float) -> Path:
    """The same bundle with the expected logits of fp32 changed in one number."""
    expected = bundle.expected()
    expected["fp32"][0, 0] += change
    write_bundle(
        folder / "changed",
        name="tiny",
        input=SPEC,
        variants=bundle.variants,
        models={v.name: bundle.path(v.name) for v in bundle.variants},
        samples=[(p, s.label) for p, s in zip(bundle.sample_paths(), bundle.samples, strict=True)],
        expected=expected,
        versions={},
        commands=[],
    )
    return folder / "changed"


def test_verify_fails_where_the_outputs_differ(
    shared: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = float(np.linalg.norm(shared.expected()["fp32"]))
    assert main(["verify", str(rewritten(shared, tmp_path, 0.0005 * size))]) == 0
    assert main(["verify", str(rewritten(shared, tmp_path, 0.002 * size))]) == 1
    assert "FAIL  fp32, as written" in capsys.readouterr().out


def test_verify_fails_where_the_class_differs(shared: Bundle, tmp_path: Path) -> None:
    report = verify(rewritten(shared, tmp_path, -100.0))
    assert {c.name for c in report.checks if c.status == "FAIL"} == {"fp32, as written", "fp32, optimised"}


def test_verify_fails_where_a_model_gives_no_number(shared: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    got = shared.expected()["fp32"]
    got[0] = np.nan  # its largest "is" then class 0, which is the right one
    monkeypatch.setattr("deploy.verify.answer_samples", lambda *_: {"logits": got})
    assert [c.status for c in verify(shared.root).checks] == ["ok", "FAIL", "FAIL", "FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], f"threads 0: must be 1 to {usable_cores()}"),
        (["--threads", str(usable_cores() + 1)], f"must be 1 to {usable_cores()}, the cores"),
        (["--backend", "tpu"], "backend 'tpu' is not known; there are: onnxruntime"),
        (["--variant", "int4"], "no variant 'int4'; there are: fp32, int8"),
        (["--variant", "fp32", "fp32"], "name each once"),
        (["--batch", "0"], "batch [0]: each must be at least 1"),
        (["--seconds", "0"], "seconds 0.0: must be more than 0"),
        (["--seconds", "nan"], "seconds nan: must be"),
        (["--warmup", "-1"], "warm-up -1.0 s: must be 0 to 60"),
        (["--in-flight", "0"], "0 queries in flight: must be 1 to"),
        (["--in-flight", "2", "--threads", "1"], "2 queries in flight: must be 1 to 1 here"),
        (["--images", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_values_are_told_without_a_traceback(
    shared: Bundle, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["bench", str(shared.root), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.out == ""


def test_a_broken_bundle_is_told(shared: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(shared.root, tmp_path / "copy")
    (tmp_path / "copy" / "models" / "fp32.onnx").write_bytes(b"x")
    assert main(["verify", str(tmp_path / "copy")]) == 2
    assert "models/fp32.onnx was altered" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("bench", "verify"):
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0
        assert f"example: python -m deploy {command} " in capsys.readouterr().out


def test_a_variant_is_frozen(shared: Bundle) -> None:
    assert replace(shared.variants[0], name="b").name == "b"
