"""The command and packing: what they say, record and return of a bundle and of a user's mistake."""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx
import pytest

from deploy.bundle import Bundle, Variant, write_bundle
from deploy.input_spec import InputSpec
from optimize import pack, rtx_build
from optimize.placement import main
from optimize.rtx_build import COMPUTE_CAPABILITIES
from optimize.variants import Made
from tests import residual_graph
from tests.pictures import save
from tests.test_optimize_support import SPEC
from tests.test_placement import small, uint8_128

pytestmark = pytest.mark.skipif(
    not rtx_build.is_installed(), reason="TensorRT-RTX is for Linux on x86-64 only"
)


def bundle(folder: Path, model: onnx.ModelProto, keep_float: Set[str] = frozenset()) -> Bundle:
    """fp32 for ONNX Runtime and int8 for TensorRT."""
    files = {"fp32": residual_graph.saved(residual_graph.residual(), folder), "int8": folder / "int8.onnx"}
    onnx.save(model, files["int8"])
    image = save(folder / "image.png", 8, 8)
    kept = {"keep_float": sorted(keep_float)}
    return write_bundle(
        folder / "bundle",
        name="residual",
        input=InputSpec(size=8, resize=8, mean=SPEC.mean, std=SPEC.std, class_names=SPEC.class_names),
        variants=[
            Variant("fp32", "", "fp32", "onnxruntime", 1, {}, {}),
            Variant("int8", "", "int8", "tensorrt", 1, {}, kept),
        ],
        models=files,
        samples=[(image, 0)],
        expected={name: np.zeros((1, 10), np.float32) for name in files},
        versions={},
        commands=[],
    )


def test_a_bundle_is_judged_by_its_own_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bundle(tmp_path, small({"a2"}), {"a2"}).root
    assert main([str(root), "--json", str(tmp_path / "found.json")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[:4] for line in out.splitlines() if " of 6" in line] == [
        [capability, "5", "of", "6"] for capability in COMPUTE_CAPABILITIES
    ]
    assert "Evidence, not proof" in out
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["engines"]["12.0"]["convs"] == {"Int8": 5, "Float": 1}


def test_a_finding_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = bundle(tmp_path, small({"a2"})).root
    assert main([str(root), "--variant", "int8", "--compute-capability", "8.6", "8.9"]) == 1
    assert "  8.6, 8.9: a2 (Conv): multiplies Float and Float, must be Int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{root}", "--variant", "fp32"], "no variant fp32 for TensorRT; it has int8"),
        (["{root}", "--keep-float", "a2"], "a bundle says itself"),
        (["{root}", "--compute-capability", "8.7"], "8.7: must be one of 8.6, 8.9, 12.0"),
        (["{file}", "--variant", "int8"], "is one file"),
        (["{file}", "--keep-float", "a9"], "no Conv or Gemm 'a9'"),
        (["{root}/none.onnx"], "is no ONNX file that can be read"),
        (["{image}.onnx"], "is no ONNX file that can be read"),
        (["{root}/none"], "a bundle is a folder"),
    ],
)
def test_a_users_mistake_is_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = bundle(tmp_path, small()).root
    (tmp_path / "image.png.onnx").write_bytes((tmp_path / "image.png").read_bytes())
    places = {"root": root, "file": tmp_path / "int8.onnx", "image": tmp_path / "image.png"}
    given = [argument.format(**places) for argument in arguments]
    assert main([*given, "--json", str(tmp_path / "found.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "found.json").exists()


def made(folder: Path, model: onnx.ModelProto) -> list[Made]:
    files = bundle(folder, model)
    return [Made(variant, files.path(variant.name), variant.name) for variant in files.variants]


def test_packing_records_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    fp32, int8 = pack.with_placement(made(tmp_path, small()), lines.append)
    assert "placement" not in fp32.variant.metrics
    assert list(int8.variant.metrics["placement"]["engines"]) == ["8.6"]
    json.dumps(int8.variant.metrics)
    assert lines == [
        "placement: int8: 6 of 6 convolutions, 1 of 1 products, 2 of 2 skips in INT8, 1 reformats for 8.6: "
        "as asked for"
    ]
    monkeypatch.setattr(pack, "is_installed", lambda: False)
    assert "placement" not in pack.with_placement(made(tmp_path, small()), lines.append)[1].variant.metrics
    assert "not installed here" in lines[1]
    assert len(lines) == 2


def test_packing_goes_on_with_what_tensorrt_rtx_refuses(tmp_path: Path) -> None:
    lines: list[str] = []
    model = small()
    uint8_128(model)
    assert "placement" not in pack.with_placement(made(tmp_path, model), lines.append)[1].variant.metrics
    assert "r0_QuantizeLinear" in lines[0]
