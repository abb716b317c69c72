"""The table of an engine's layers, from a log of TensorRT-RTX, so that this runs where the library does not.

`rtx_1_7.log` is what version 1.7.1.116 said of `residual_graph` in its s8 form, for compute capability 8.6;
of its first lines only a few.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.errors import LabError
from optimize.layer_table import parse_log
from optimize.placement_judge import judge_engine
from optimize.qdq import emit
from tests import residual_graph
from tests.test_optimize_qdq import residual_scales

LOG = Path(__file__).with_name("rtx_1_7.log").read_text()
CONV = next(line for line in LOG.splitlines() if line.startswith("Name: a2_"))
ADD = next(line for line in LOG.splitlines() if "[ONNX Layer: add_a]" in line)


def findings(log: str) -> list[str]:
    model = emit(residual_graph.residual(), residual_scales(), "s8")
    return judge_engine(model, parse_log(log), int8=True).findings


def changed(line: str, *swaps: tuple[str, str]) -> str:
    """The log with the first of each text in that line replaced."""
    new = line
    for old, put in swaps:
        assert old in new
        new = new.replace(old, put, 1)
    return LOG.replace(line, new)


def test_a_recorded_table_is_read_whole() -> None:
    table = parse_log(LOG)
    assert table.weight_bytes == 20488
    assert len(table.layers) == LOG.split("I/O Tensors:")[0].count("\nName: ")
    (conv,) = [layer for layer in table.layers if layer.name.startswith("a2_")]
    assert conv.kind == "correlation"
    assert conv.nodes == ("a2", "r1_DequantizeLinear", "a2.weight_DequantizeLinear")
    assert [(t.dims, t.dtype) for t in conv.inputs] == [((1, 16, 8, 8), "Int8")]
    assert (conv.constants[0].dims, conv.constants[0].dtype) == ((16, 16, 3, 3), "Int8")
    assert [t.dtype for t in conv.outputs] == ["Float"]
    (waits, signals) = [[one for one in table.layers if one.kind == kind] for kind in ("wait", "signal")]
    assert all(one.inputs == () and one.nodes == () for one in waits + signals)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Layers:\n", "Engine layers:\n"),
        ("I/O Tensors:\n", "Layers:\n"),
        ("Layers:\n", "Layers:\n\n"),
        ("Total Weights Memory: 20488 bytes", "Total Weights Memory: 20 kB"),
        ("LayerType: correlation", "Type: correlation"),
        ("Datatype: Int8", "Type: Int8"),
        ("Dimensions: [1,16,8,8]", "Dimensions: [N,16,8,8]"),
        ("[ONNX Layer: a1]", "[Layer: a1]"),
        ("Constants: [", "Weights: ["),
        ("Name: stem_", "stem_"),
    ],
)
def test_another_form_is_no_pass(old: str, new: str) -> None:
    assert old in LOG
    with pytest.raises(LabError, match="cannot judge"):
        parse_log(LOG.replace(old, new))


def test_the_recorded_engine_is_as_asked_for() -> None:
    model = emit(residual_graph.residual(), residual_scales(), "s8")
    found = judge_engine(model, parse_log(LOG), int8=True)
    assert (found.convs, found.products) == ({"Int8": 6}, {"Int8": 1})
    assert found.adds == {"Int8": 1, "in the kernel": 1}
    assert found.padded == ["stem: 3 -> 4"]
    assert len(found.reformats) == 1  # the image, rounded and padded
    assert found.ok


@pytest.mark.parametrize(
    ("log", "finding"),
    [
        (changed(CONV, ("Datatype: Int8", "Datatype: Float")), r"a2 \(Conv\): multiplies Float and Int8"),
        (
            changed(
                CONV,
                ("Constants: [ { Name: ", "Constants: [ { Name: w"),
                ("Datatype: Int8", "Datatype: Half"),
            ),
            r"a2 \(Conv\): multiplies Half and Int8, must be Int8",
        ),
        (changed(ADD, ("Datatype: Int8", "Datatype: Float")), r"add_a \(Add\): reads a Float copy"),
    ],
)
def test_what_is_not_int8_is_found(log: str, finding: str) -> None:
    (found,) = findings(log)
    assert re.search(finding, found)


def test_a_kernel_may_round_its_input_itself() -> None:
    """As one does for the small convolution of a squeeze-and-excitation block."""
    swaps = [("LayerType: correlation", "LayerType: kgen"), ("Datatype: Int8", "Datatype: Float")]
    assert findings(changed(CONV, *swaps))
    assert findings(changed(CONV, *swaps, ("Layer: r1_Dequantize", "Layer: r1_Quantize"))) == []


def test_a_layer_that_is_not_there_is_no_pass() -> None:
    with pytest.raises(
        LabError, match=r"cannot judge: no layer of the engine is known to compute a2 \(Conv\)"
    ):
        findings(LOG.replace(CONV + "\n", ""))
    with pytest.raises(LabError, match=r"cannot judge: no layer of the engine names add_a"):
        findings(LOG.replace(ADD + "\n", ""))
    with pytest.raises(LabError, match=r"cannot judge: layer a2_.* not an input by a weight"):
        findings(LOG.replace(CONV, re.sub(r"Constants: \[.*?\], Outputs", "Constants: [], Outputs", CONV)))
