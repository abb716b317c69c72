"""The benchmarks of what leaves the project: what they compare is the same work, and their sums are right."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from configs.load import load
from configs.quantize import QuantizeConfig
from deploy.backends import open_runner
from deploy.errors import LabError
from optimize.fidelity import Fidelity
from scripts import bench_int8, bench_runners
from scripts.bench_int8 import Entry, Subject, fastest, from_files, judge, open_all, table, verdict
from scripts.int8_peers import BOTH, Int8File, make_files
from tests import residual_graph

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["bench_runners", "bench_int8", "bench_quantize"])
def test_help_says_what_it_is_for(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    doc = ast.get_docstring(ast.parse((ROOT / "scripts" / f"{name}.py").read_text()))
    assert doc is not None
    assert doc.split()[-1] in done.stdout
    assert f"usage: python -m scripts.{name}" in done.stdout


@pytest.mark.parametrize("backend", bench_runners.BARE)
def test_the_bare_library_does_the_runners_work(tmp_path: Path, backend: str) -> None:
    bundle = bench_runners.bundle_of("tiny", tmp_path / "tiny")
    image = np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)
    for variant in ("fp32", "int8-cpu"):
        found = bench_runners.BARE[backend](bundle.path(variant), 1, image)()
        with open_runner(bundle, variant, backend, threads=1) as runner:
            logits = runner.infer({"image": image})["logits"]
        bare = found[0]  # type: ignore[index]  # what either library returns can be counted through
        np.testing.assert_array_equal(bare, logits)
    ours, bare_ms = bench_runners.compare(bundle, "fp32", backend, 1, rounds=3, seconds=0.001)
    assert len(ours) == len(bare_ms) == 3
    assert min(ours + bare_ms) > 0


def test_what_our_runner_adds() -> None:
    added, ratio = bench_runners.lines("it", [0.011, 0.012, 0.014], [0.010, 0.010, 0.010])
    assert added == "it: 0.0120 ms, bare 0.0100 ms; added 2.0 us (1.0 to 4.0)"
    assert "1.200 (1.100 to 1.400); goal: at most 1.03" in ratio


def entry(contender: str, backend: str, ms: list[float], snr: float, top1: float | None = None) -> Entry:
    fidelity = Fidelity(10 ** (-snr / 20), 0.99, 100)
    return Entry(contender, backend, lambda images: images, fidelity, top1, {1: ms, 16: [8 * m for m in ms]})


ENTRIES = [
    entry("FP32", "onnxruntime", [0.1, 0.1, 0.1], 300),
    entry("ours, int8-cpu", "onnxruntime", [4.0, 4.4, 4.2], 30, 0.9),
    entry("ours, int8", "openvino", [2.0, 2.2, 3.0], 31, 0.91),
    entry("NNCF, ONNX", "openvino", [2.0, 2.0, 2.0], 25, 0.90),
    entry("ONNX Runtime", "onnxruntime", [4.0, 4.0, 4.0], 24, 0.92),
]


def test_ours_is_held_against_the_fastest_other() -> None:
    lines = verdict(ENTRIES)
    of_all = lines[0]
    assert "batch 1, onnxruntime or openvino: ours, int8 in openvino over NNCF, ONNX in openvino" in of_all
    assert "1.100 (1.000 to 1.500); goal: at most 1.05" in of_all
    assert "SNR +6.0 dB, top-1 +1.00%" in lines[1]
    (alone,) = (line for line in lines if line.startswith("  batch 16, onnxruntime: "))
    assert "ours, int8-cpu in onnxruntime over ONNX Runtime in onnxruntime: 1.050" in alone
    assert fastest([], 1) is None
    assert verdict(ENTRIES[:3]) == []  # nobody to compare with


def test_table_has_a_line_for_each_file_and_backend() -> None:
    head, _, fp32, *others = table(ENTRIES)
    assert head.startswith("| contender | backend | p50 ms, batch 1 | p50 ms, batch 16 | top-1 ")
    assert fp32.endswith("| - | 99.00% | 300.0 |")
    assert others[1] == (
        "| ours, int8 | openvino | 2.20 (2.00 to 3.00) | 17.60 (16.00 to 24.00) | 91.00% | 99.00% | 31.0 |"
    )


def test_our_files_and_onnx_runtimes_are_made_judged_and_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fp32 = residual_graph.saved(residual_graph.residual(), tmp_path)
    config = load("quantize_and_benchmark", QuantizeConfig, ["checkpoint=none"]).calibration
    images = residual_graph.images(0, 40)
    calibration = [image[None] for image in images[:16]]
    monkeypatch.setitem(sys.modules, "nncf", None)  # as where it is not installed
    names = ["ours", "onnxruntime", "nncf-onnx"]
    files = make_files(names, fp32, calibration, tmp_path, config)
    assert [file.contender for file in files] == ["ours, int8-cpu", "ours, int8", "ONNX Runtime"]
    assert "nncf-onnx: left out" in capsys.readouterr().out
    assert all("QuantizeLinear" in {n.op_type for n in onnx.load(file.path).graph.node} for file in files)

    (tmp_path / "bad.onnx").write_bytes(b"x")
    files = [
        Int8File("FP32", fp32, BOTH),
        *files,
        Int8File("broken", tmp_path / "bad.onnx", ("onnxruntime",)),
    ]
    entries = open_all(files, 1)
    assert "broken in onnxruntime: left out" in capsys.readouterr().out
    assert [e.backend for e in entries] == list(BOTH) * 4
    labels = entries[0].run(images).argmax(1)
    judge(entries, Subject("residual", fp32, calibration, images, labels))
    assert entries[0].top1 == 1.0
    for one in entries[2:]:
        assert one.fidelity is not None
        assert one.fidelity.num_images == 40
        assert 10 < one.fidelity.snr_db < 60
        assert one.top1 == one.fidelity.top1_agreement
    bench_int8.take_turns(entries, images, rounds=2, seconds=0)
    assert all(len(p50) == 2 for one in entries for p50 in one.p50_ms.values())


def test_a_bad_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    floats = np.zeros((2, 3, 8, 8), np.float32)
    cases = [
        ({"images": floats}, "must hold `calibration`"),
        ({"images": floats, "calibration": floats[:0]}, "one image"),
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)  # type: ignore[arg-type]  # the stub takes the names for options
        with pytest.raises(LabError, match=message):
            from_files(Path("model.onnx"), path)
    with pytest.raises(LabError, match="needs --images"):
        from_files(Path("model.onnx"), None)
    np.savez(path, images=floats, calibration=floats)
    assert from_files(Path("model.onnx"), path).labels is None
