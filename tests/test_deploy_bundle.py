"""The bundle: what is written is what is opened, and nothing broken is opened or loses what was there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploy.accuracy import classify
from deploy.backends import open_runner
from deploy.bundle import Bundle, Variant, open_bundle, write_bundle
from deploy.errors import LabError
from deploy.input_spec import InputSpec

SIZE = 8
SPEC = InputSpec(size=SIZE, resize=9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), class_names=("red", "green"))
COLOURS = ((200, 30, 40), (20, 180, 60))


def tiny_onnx(
    path: Path, *, quantised: bool = False, side: Any = SIZE, batch: Any = "n", step: float = 0.03
) -> Path:
    """Mean of each channel, then red - green and green - red. With Q/DQ around the pooled values if asked."""
    weight = np.array([[1, -1], [-1, 1], [0.1, 0]], np.float32)
    initialisers = [numpy_helper.from_array(weight, "w")]
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["pooled"])]
    last = "pooled"
    if quantised:
        initialisers.append(numpy_helper.from_array(np.array(step, np.float32), "scale"))
        initialisers.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
        nodes.append(helper.make_node("QuantizeLinear", [last, "scale", "zero"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]))
        last = "dq"
    nodes += [
        helper.make_node("Flatten", [last], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 2])],
        initialisers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def image_folder(root: Path, count: int = 3) -> list[tuple[Path, int]]:
    """`count` plain PNG files a class, each in its class's sub-folder."""
    made = []
    for label, name in enumerate(SPEC.class_names):
        (root / name).mkdir(parents=True)
        for i in range(count):
            file = root / name / f"{i}.png"
            Image.new("RGB", (12 + i, 10), tuple(v + 5 * i for v in COLOURS[label])).save(file)
            made.append((file, label))
    return made


def tiny_bundle(folder: Path, **model: Any) -> Bundle:
    """A bundle `folder/bundle` of two variants and six samples; expected logits are computed by emulation."""
    folder.mkdir(parents=True, exist_ok=True)
    images = image_folder(folder / "photos")
    models = {
        "fp32": tiny_onnx(folder / "a.onnx", **model),
        "int8": tiny_onnx(folder / "b.onnx", quantised=True),
    }
    variants = [
        Variant(name, "", name, "onnxruntime", 6, {"run": "tiny"}, {"top1": 1.0}) for name in ("fp32", "int8")
    ]

    def write(expected: dict[str, NDArray[np.float32]]) -> Bundle:
        return write_bundle(
            folder / "bundle",
            name="tiny",
            input=SPEC,
            variants=variants,
            models=models,
            samples=images,
            expected=expected,
            versions={"edgelab": "0.1.0"},
            commands=["python -m scripts.tiny"],
        )

    draft = write({name: np.zeros((6, 2), np.float32) for name in models})
    if model:  # such a model may not open, which is what its test is about
        return draft
    expected = {}
    for name in models:
        with open_runner(draft, name, threads=1, emulate=True) as runner:
            expected[name] = classify(runner, draft.sample_paths(), SPEC, 4)
    return write(expected)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path)


def edit(bundle: Bundle, **changes: Any) -> None:
    path = bundle.root / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_written_is_opened(bundle: Bundle) -> None:
    again = open_bundle(bundle.root)
    assert again == bundle
    assert again.input == SPEC
    assert [s.label for s in again.samples] == [0, 0, 0, 1, 1, 1]
    assert again.path("int8").is_file()
    assert again.expected()["fp32"].shape == (6, 2)
    assert sorted(p.name for p in bundle.root.parent.iterdir()) == ["a.onnx", "b.onnx", "bundle", "photos"]


def test_json_is_deterministic(bundle: Bundle) -> None:
    text = (bundle.root / "bundle.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def test_unknown_variant_lists_the_names(bundle: Bundle) -> None:
    with pytest.raises(LabError, match=r"no variant 'int4'; there are: fp32, int8"):
        bundle.path("int4")


@pytest.mark.parametrize("name", ["models/int8.onnx", "samples/000.png", "samples/expected.npz"])
def test_a_changed_byte_is_found(bundle: Bundle, name: str) -> None:
    content = bytearray((bundle.root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle.root / name).write_bytes(content)
    expected_hash = bundle.files[name][:12]
    with pytest.raises(LabError, match=rf"{name} was altered: .* {expected_hash}, it begins [0-9a-f]{{12}};"):
        open_bundle(bundle.root)


def test_a_missing_file_is_found(bundle: Bundle) -> None:
    bundle.path("fp32").unlink()
    with pytest.raises(LabError, match=r"models/fp32\.onnx: No such file"):
        open_bundle(bundle.root)


def test_a_later_schema_names_both_numbers(bundle: Bundle) -> None:
    edit(bundle, schema=7, something_new=1)
    with pytest.raises(LabError, match="schema 7, this edgelab reads up to 2; update edgelab"):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/hostname",
        "models/../../secret",
        "models/../models/fp32.onnx",
        "C:secret",
        "..\\secret",
    ],
)
def test_a_path_out_of_the_folder_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.root.parent / "secret").write_text("x")
    edit(bundle, files={**bundle.files, name: "0" * 64})
    with pytest.raises(LabError, match="lies outside"):
        open_bundle(bundle.root)


def test_a_link_out_of_the_folder_is_refused(bundle: Bundle) -> None:
    outside = bundle.root.parent / "outside.onnx"
    shutil.copy(bundle.path("fp32"), outside)
    bundle.path("fp32").unlink()
    bundle.path("fp32").symlink_to(outside)
    with pytest.raises(LabError, match="lies outside"):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": []}, "at least one variant"),
        ({"variants": [{"name": "fp32"}]}, "missing keys .*'backend'"),
        ({"variants": "fp32"}, "variants must be a list"),
        ({"samples": [{"file": "samples/000.png", "label": 2}]}, "label 2, must be 0 to 1"),
        ({"samples": [{"file": "samples/000.png", "label": "red"}]}, "label must be a int"),
        ({"files": {}}, "no SHA-256 in 'files' for .*models/fp32.onnx"),
        ({"schema": "1"}, "schema '1' must be an integer"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"input": {"size": 8}}, "input spec: missing"),
    ],
)
def test_a_wrong_structure_is_named(bundle: Bundle, changes: dict[str, Any], message: str) -> None:
    edit(bundle, **changes)
    with pytest.raises(LabError, match=message):
        open_bundle(bundle.root)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[]", "expected an object"), ("\x00", "not JSON")]
)
def test_what_is_no_json_object_is_named(bundle: Bundle, text: str, message: str) -> None:
    (bundle.root / "bundle.json").write_text(text)
    with pytest.raises(LabError, match=message):
        open_bundle(bundle.root)


def test_a_folder_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"a bundle is a folder that holds bundle\.json"):
        open_bundle(tmp_path)


def test_a_strange_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(LabError, match="is no bundle, so it is not replaced"):
        tiny_bundle(tmp_path)
    assert (tmp_path / "bundle" / "thesis.txt").exists()


def test_expected_must_be_one_row_a_sample(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        LabError, match=r"expected logits of fp32: float32 \(5, 2\), must be float32 \(6, 2\)"
    ):
        write_bundle(
            tmp_path / "other",
            name="tiny",
            input=SPEC,
            variants=bundle.variants[:1],
            models={"fp32": bundle.path("fp32")},
            samples=[(p, 0) for p in bundle.sample_paths()],
            expected={"fp32": np.zeros((5, 2), np.float32)},
            versions={},
            commands=[],
        )
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_the_old_bundle(bundle: Bundle) -> None:
    """A file-size limit of 4 KiB makes the write itself fail, as a full disk does."""
    before = {p: p.read_bytes() for p in bundle.root.rglob("*") if p.is_file()}
    big = bundle.root.parent / "a.onnx"
    big.write_bytes(big.read_bytes() + b"\0" * 8192)
    script = """
import resource, signal, sys
from pathlib import Path
from deploy.bundle import open_bundle, write_bundle
from deploy.errors import LabError
old = open_bundle(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_bundle(old.root, name="new", input=old.input, variants=old.variants,
                 models={"fp32": Path(sys.argv[2]), "int8": old.path("int8")},
                 samples=[(p, 0) for p in old.sample_paths()], expected=old.expected(),
                 versions={}, commands=[])
except LabError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, bundle.root, big],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be written (File too large)" in done.stdout
    assert "MiB are free" in done.stdout
    assert {p: p.read_bytes() for p in bundle.root.rglob("*") if p.is_file()} == before
    assert open_bundle(bundle.root) == bundle
    assert sorted(p.name for p in bundle.root.parent.iterdir()) == ["a.onnx", "b.onnx", "bundle", "photos"]


def test_a_failed_swap_is_taken_back(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fail_on_the_second(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".bundle.new-") and self.name == "bundle":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_second)
    with pytest.raises(LabError, match="Input/output error"):
        write_bundle(
            bundle.root,
            name="new",
            input=SPEC,
            variants=bundle.variants,
            models={v.name: bundle.path(v.name) for v in bundle.variants},
            samples=[(p, 0) for p in bundle.sample_paths()],
            expected=bundle.expected(),
            versions={},
            commands=[],
        )
    assert open_bundle(bundle.root) == bundle


@pytest.mark.parametrize(("side", "shown"), [("h", r"\?"), (16, "16")])
def test_a_model_of_another_size_is_refused(tmp_path: Path, side: Any, shown: str) -> None:
    bundle = tiny_bundle(tmp_path, side=side)
    with pytest.raises(
        LabError, match=rf"N x 3 x {shown} x {shown}, the bundle's input spec says .* 3 x 8 x 8"
    ):
        open_runner(bundle, "fp32")


def test_what_is_no_onnx_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    bundle.path("fp32").write_bytes(b"not a model")
    with pytest.raises(LabError, match=r"fp32\.onnx: ONNX Runtime .* cannot open it"):
        open_runner(bundle, "fp32")


def test_runner_refuses_what_the_model_does_not_take(bundle: Bundle) -> None:
    good = np.zeros((1, 3, SIZE, SIZE), np.float32)
    with open_runner(bundle, "fp32", threads=1) as runner:
        assert runner.infer({"image": good})["logits"].shape == (1, 2)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"picture": good}, "the model's only input is 'image'"),
            ({"image": good.astype(np.float64)}, "is float64 1 x 3 x 8 x 8, must be float32 N x 3 x 8 x 8"),
            ({"image": good[:, :, :7]}, "is float32 1 x 3 x 7 x 8, must be"),
            ({"image": good[0]}, "is float32 3 x 8 x 8, must be"),
            ({"image": good[:0]}, "is float32 0 x 3"),
        ]
        for feed, message in wrong:
            with pytest.raises(LabError, match=message):
                runner.infer(feed)


def test_a_model_of_a_fixed_batch(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path, batch=4)
    with open_runner(bundle, "fp32", threads=1) as fixed, open_runner(bundle, "int8", threads=1) as free:
        assert (fixed.inputs[0].shape[0], free.inputs[0].shape[0]) == (4, None)
        with pytest.raises(LabError, match="has batch 3, the model was exported for batch 4 only"):
            fixed.infer({"image": np.zeros((3, 3, SIZE, SIZE), np.float32)})
        logits = classify(fixed, bundle.sample_paths(), SPEC, 6)
        one = [classify(fixed, [p], SPEC, 1) for p in bundle.sample_paths()]
        np.testing.assert_array_equal(logits, np.concatenate(one))


def test_unknown_backend_and_threads(bundle: Bundle) -> None:
    with pytest.raises(LabError, match="backend 'tpu' is not known; there are: onnxruntime"):
        open_runner(bundle, "fp32", "tpu")
    with pytest.raises(LabError, match="threads 0: must be 1 to"):
        open_runner(bundle, "fp32", threads=0)
