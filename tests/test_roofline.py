"""The ceilings: that what is timed is what it says it is, and the tiled product against torch's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from deploy.cpu_model import CpuCeilings
from deploy.errors import LabError
from deploy.graph_cost import read_layers
from scripts import roofline, roofline_gpu
from tests.processes import ROOT
from tests.residual_graph import saved

SHAPES = [(14, 64, 192, 1, False), (14, 32, 32, 3, True), (16, 3, 32, 3, False)]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_timed_row_computes_what_its_ceiling_counts(
    precision: str, shape: roofline.Shape, tmp_path: Path
) -> None:
    model = roofline.convolutions(precision, *shape)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given = session.get_inputs()[0]
    kind = np.uint8 if precision == "int8" else np.float32
    (out,) = session.run(None, {given.name: np.ones(given.shape, kind)})
    assert out.any()
    assert list(out.shape) == session.get_outputs()[0].shape
    found = roofline._ceilings(precision, shape, 1e-3)
    if precision == "fp32":
        layers = read_layers(saved(model, tmp_path), 1)
        ops = 2 * sum(layer.macs for layer in layers)
        assert [one.gops for one in found] == [pytest.approx(ops / 1e-3 / 1e9)] * len(found)
        shapes = {(x.rows, x.columns, x.depth, x.depthwise) for x in layers}
        assert {(x.rows, x.columns, x.depth, x.depthwise) for x in found} == shapes


def test_the_grid_holds_each_shape_once_and_none_that_is_too_large() -> None:
    shapes = list(roofline.product_shapes())
    assert len(set(shapes)) == len(shapes)
    for side, inputs, outputs, kernel, depthwise in shapes:
        if not depthwise:
            assert side**2 * inputs * outputs * kernel**2 <= roofline.MOST_MACS
        assert side**2 * outputs <= roofline.MOST_VALUES


def test_it_measures_prints_and_writes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline, "product_shapes", lambda: SHAPES)
    monkeypatch.setattr(roofline, "PASS_BYTES", (1 << 14, 1 << 16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "roofline.json"
    command = ["--threads", "1", "--rounds", "1", "--seconds", "0.0001", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["roofline", *command])
    assert roofline.main() == 0
    found = CpuCeilings.read(file)
    assert found.threads == 1
    assert {one.precision for one in found.products} == {"fp32", "int8"}
    assert all(one.gops > 0 for one in found.products)
    assert [one.bytes for one in found.passes] == [1 << 14, 1 << 16]
    printed = capsys.readouterr().out
    assert f"{found.cpu}, 1 threads" in printed
    assert "9 depthwise" in printed
    monkeypatch.setattr(sys, "argv", ["roofline", "--rounds", "0"])
    assert roofline.main() == 2
    assert "rounds 0" in capsys.readouterr().err


def test_the_tiled_product_is_right_in_tritons_interpreter() -> None:
    """On the CPU: edges that fill no tile, a transposed matrix; float16, its product of bfloat16 is wrong."""
    pytest.importorskip("triton")
    code = """
import torch
from scripts.roofline_gpu import _kernel
tuned, blocks = _kernel()
torch.manual_seed(0)
a, b = torch.randn(70, 45).half(), torch.randn(50, 45).half().T
out = torch.empty(70, 50).half()
grid = (blocks(70, 32) * blocks(50, 16),)
tuned.fn[grid](a, b, out, 70, 50, 45, *a.stride(), *b.stride(), *out.stride(), GROUP=2,
               BLOCK_M=32, BLOCK_N=16, BLOCK_K=16)
torch.testing.assert_close(out.float(), a.float() @ b.float(), rtol=2e-3, atol=2e-2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_is_no_matrix_on_a_gpu_is_refused() -> None:
    with pytest.raises(LabError, match="both must be float16 or both bfloat16, on one GPU"):
        roofline_gpu.matmul(torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k"), [(256, 256, 256), (333, 129, 77), (1, 1000, 2048)])
def test_the_tiled_product_is_cublas_on_a_gpu(kind: torch.dtype, m: int, n: int, k: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    a = torch.randn(m, k, device="cuda", generator=generator).to(kind)
    b = torch.randn(n, k, device="cuda", generator=generator).to(kind).T
    found = roofline_gpu.matmul(a, b).float()
    wanted = a.float() @ b.float()
    scale = float(wanted.abs().max())
    assert float((found - wanted).abs().max()) < (2**-10 if kind == torch.float16 else 2**-7) * scale
