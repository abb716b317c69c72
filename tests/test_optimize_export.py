"""The FP32 file computes what the network does, at any batch, and carries nothing of this machine."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from deploy.errors import LabError
from optimize.export import OPSET, check_static_size, compare_onnx, export_onnx
from optimize.files import write_model
from tests.test_optimize_support import SIZE, SPEC, batches, exported, images, load, network


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_file_agrees_with_network(name: str) -> None:
    record = compare_onnx(network(name), exported(name), batches())
    assert record.relative_error < 1e-4
    assert record.top1_agreement == 1.0
    assert record.num_images == 16


def test_record_tells_another_network() -> None:
    other = copy.deepcopy(network("resnet18"))
    torch.nn.init.normal_(other.get_submodule("layer1.0.conv1").weight)  # type: ignore[arg-type]
    record = compare_onnx(other, exported("resnet18"), batches())
    assert record.relative_error > 0.1
    assert record.top1_agreement < 1.0


def test_comparison_needs_images() -> None:
    with pytest.raises(LabError, match="0 images"):
        compare_onnx(network("resnet18"), exported("resnet18"), [])


@pytest.mark.parametrize("batch", [1, 5])
def test_batch_is_dynamic(batch: int) -> None:
    session = onnxruntime.InferenceSession(str(exported("resnet18")))
    assert session.run(["logits"], {"image": images(0, batch)})[0].shape == (batch, 10)


def test_batchnorm_is_folded_and_the_mean_is_a_pool() -> None:
    ops = [node.op_type for node in load("resnet18").graph.node]
    assert ops.count("Conv") == 20
    assert ops.count("GlobalAveragePool") == 1
    assert not {"BatchNormalization", "ReduceMean"} & set(ops)


def test_model_stays_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(2, 3, SIZE, SIZE))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, SPEC, tmp_path / "m.onnx")
    assert model.training
    assert isinstance(model[1], nn.BatchNorm2d)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_exporter_is_silenced_and_its_errors_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def chatty(*args: object, **kwargs: object) -> None:
        print("[torch.onnx] Obtain model graph...")
        warnings.warn("deprecated", stacklevel=1)
        logging.getLogger("torch.onnx").warning("conversion to opset 20")
        raise RuntimeError("cannot be exported")

    monkeypatch.setattr(torch.onnx, "export", chatty)
    with (
        warnings.catch_warnings(record=True) as warned,
        pytest.raises(RuntimeError, match="cannot be exported"),
    ):
        export_onnx(network("resnet18"), SPEC, tmp_path / "m.onnx")
    assert (warned, capfd.readouterr()) == ([], ("", ""))
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("torch.onnx").isEnabledFor(logging.WARNING)


def test_file_holds_no_trace_of_this_machine() -> None:
    model = load("resnet18")
    assert [o.version for o in model.opset_import] == [OPSET]
    assert ([i.name for i in model.graph.input], [o.name for o in model.graph.output]) == (
        ["image"],
        ["logits"],
    )
    raw = exported("resnet18").read_bytes()
    assert not any(part in raw for part in (b"site-packages", b".py", str(Path.cwd()).encode(), b"pkg.torch"))


def test_dynamic_size_is_refused() -> None:
    model = load("resnet18")
    check_static_size(model)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    with pytest.raises(LabError, match=r"'width'.*fixed size"):
        check_static_size(model)


def test_bad_model_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    model = load("resnet18")
    model.graph.node[3].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError):
        write_model(model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"old"
