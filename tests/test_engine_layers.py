"""What the inspector says of an engine's layers, in the forms of TensorRT 10 and 11."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from deploy.engine_layers import quantised_nodes, read_layers, weigh
from deploy.errors import LabError
from optimize.calibrate import calibrate
from optimize.precision import weight_only
from optimize.qdq import emit
from tests import residual_graph
from tests.engines import real_rtx
from tests.fake_inspector import Row, layers_json

INT8, FP16, FP32 = "Row major Int8 format", "Channel major FP16 format", "Row major linear FP32"
ROWS: list[Row] = [
    ("Reformatting CopyNode for Input Tensor 0 to stem + r0", "Reformat", [FP32], [INT8], None, ""),
    ("stem.weight + stem + r0", "CaskConvolution", [INT8], [INT8], "Int8", "stem r0"),
    ("a1 + r1", "CaskConvolution", [INT8, INT8], [INT8], "Int8", "a1 r1"),
    ("b1", "CaskConvolution", [FP32], [FP32], "Float", "b1"),
    ("b2", "CaskConvolution", [INT8], [FP32], "Float", "b2"),
    ("pool", "CaskPooling", [FP16], [FP16], None, "pool"),
    ("__myl_Cast_myl0_1", "kgen", [], [FP32], None, "head"),
]
ASKED = ("stem", "a1", "b1", "b2", "head", "skip")


@pytest.mark.parametrize("major", [10, 11])
def test_what_is_not_int8_is_named_with_what_it_is(major: int) -> None:
    found = weigh(read_layers(layers_json(major, ROWS)), ASKED)
    assert found.not_int8 == {
        "b1": "fp32",
        "b2": "fp32",  # it reads int8 and multiplies float weights
        "head": "fp32",
        "skip": "?",
    }
    assert found.layers == {"fp32": 3, "int8": 2, "fp16": 1}
    assert (found.reformats, found.asked) == (1, 6)
    assert str(found) == "layers: 3 fp32, 2 int8, 1 fp16, 1 reformats; 2 of 6 quantised nodes in int8"
    assert found.leading == "fp32"
    assert weigh(read_layers(layers_json(major, ROWS)), ["stem", "a1", "b1"]).leading == "int8"
    assert weigh(read_layers(layers_json(major, ROWS[5:6])), []).leading == "fp16"


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        ({"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}, "int8"),
        ({"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}, "fp16"),
        ({"Format/Datatype": "Float"}, "fp32"),
        ({"Format/Datatype": "Half"}, "fp16"),
        ({"Format/Datatype": "Row major linear BFloat16"}, "bf16"),
        ({"Format": "Row major linear format (kLINEAR)", "DataType": "Int8"}, "int8"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "Datatype": "Half"}, "fp16"),
        ({"Format": "kCHW32", "DataType": "FP8"}, "fp8"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, "?"),
        ({"Name": "x"}, "?"),
    ],
)
def test_a_tensors_type_is_read_in_every_form(form: dict[str, str], precision: str) -> None:
    (layer,) = read_layers(json.dumps({"Layers": [{"Name": "a", "LayerType": "b", "Inputs": [form]}]}))
    assert layer.precision == precision
    assert layer.in_int8 == (precision == "int8")


@pytest.mark.parametrize("text", ["", "no JSON", '{"Bindings": []}', '{"Layers": ["only a name"]}', "[]"])
def test_what_is_no_table_is_told(text: str) -> None:
    with pytest.raises(LabError, match=r"gave no table of layers.*precision of this engine is not known"):
        read_layers(text)


def test_what_a_network_asks_to_be_int8_is_found_by_a_real_parser(tmp_path: Path) -> None:
    model = residual_graph.residual()
    batches = iter([residual_graph.images(0, 4)])
    scales = calibrate(residual_graph.saved(model, tmp_path), batches, "max", 99.99)
    found = {}
    weight_only(tmp_path / "fp32.onnx", tmp_path / "weights.onnx")
    for name, network in {
        "float": model,
        "weights": onnx.load(tmp_path / "weights.onnx"),
        "all": emit(model, scales, "s8"),
        "mixed": emit(model, scales, "s8", keep_float={residual_graph.FRAGILE}),
    }.items():
        api = real_rtx()
        builder = api.builder()
        empty = api.network(builder)
        assert api.parser(empty).parse(network.SerializeToString())
        found[name] = quantised_nodes(empty)
    layers = residual_graph.LAYERS
    assert found == {
        "float": (),
        "weights": (),
        "all": layers,
        "mixed": tuple(name for name in layers if name != residual_graph.FRAGILE),
    }
