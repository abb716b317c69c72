"""A bundle whose samples are tensors: what is written is what is opened, verified and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from deploy.__main__ import main
from deploy.backends import open_runner
from deploy.bench import bench
from deploy.bundle import Bundle, Variant, file_sha256, open_bundle, write_tensor_bundle
from deploy.errors import LabError
from deploy.manifest import Answers
from deploy.manifest_file import read_manifest
from deploy.results import read_measurements
from deploy.score import ratio_db, score
from deploy.tensor_spec import TensorSpec
from deploy.tensors import Tensors
from deploy.verify import answer_samples, verify
from optimize.foreign import read_onnx
from optimize.foreign_shape import settle
from tests.foreign_nets import classifier, detector, encoder, pictures, sentences
from tests.test_deploy_bundle import tiny_bundle

QUICK = ["--seconds", "0.003", "--warmup", "0", "--threads", "1"]


def bundle_of(
    folder: Path, path: Path, samples: Tensors, class_output: str | None = None, shift: float = 0.0
) -> Bundle:
    """`folder/bundle` of a network as fp32, and again as a variant `other`. `shift` is added to what is
    expected of the first output of fp32."""
    sides = {name: array.shape[1:] for name, array in samples.arrays.items()}
    foreign = settle(read_onnx(path), sides, lambda line: None)
    variants = [Variant(n, "", p, "onnxruntime", 1, {}, {}) for n, p in (("fp32", "fp32"), ("other", "int8"))]

    def write(expected: Mapping[str, Answers]) -> Bundle:
        return write_tensor_bundle(
            folder / "bundle",
            name="foreign",
            input=None,
            inputs=foreign.inputs,
            outputs=foreign.outputs,
            class_output=class_output,
            variants=variants,
            models={"fp32": path, "other": path},
            samples=samples,
            expected=expected,
            versions={},
            commands=[],
        )

    count = len(samples)
    shapes = {o.name: (count, *(side or 1 for side in o.shape[1:])) for o in foreign.outputs}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    draft = write({"fp32": zeros, "other": zeros})
    with open_runner(draft, "fp32", threads=1, emulate=True) as runner:
        answers = answer_samples(runner, samples)
    first = foreign.outputs[0].name
    return write({"fp32": answers | {first: answers[first] + np.float32(shift)}, "other": answers})


@pytest.fixture
def texts(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path, fixed_encoder(tmp_path), Tensors(sentences(5)))


def fixed_encoder(folder: Path) -> Path:
    """With the sides of its samples, as the road leaves it."""
    sides = {name: array.shape[1:] for name, array in sentences(1).items()}
    foreign = settle(read_onnx(encoder(folder / "open.onnx")), sides, lambda line: None)
    onnx.save(foreign.model, folder / "encoder.onnx")
    return folder / "encoder.onnx"


def test_what_was_written_is_opened(texts: Bundle) -> None:
    again = open_bundle(texts.root)
    assert again == texts
    assert [str(spec) for spec in again.inputs] == ["int64 N x 6", "int64 N x 6"]
    assert (again.input, again.class_output, again.num_classes) == (None, None, None)
    for name, array in sentences(5).items():
        np.testing.assert_array_equal(again.tensors().arrays[name], array)
    assert again.answers()["other"]["states"].shape == (5, 6, 16)
    with pytest.raises(LabError, match="none of its outputs names a class"):
        again.expected()


def test_several_inputs_are_verified_and_measured(texts: Bundle, tmp_path: Path) -> None:
    assert [c.status for c in verify(texts.root, threads=1).checks] == ["ok"] * 5
    out = tmp_path / "results.jsonl"
    assert main(["bench", str(texts.root), "--out", str(out), "--batch", "1", "3", *QUICK]) == 0
    for m in read_measurements(out):
        assert m.accuracy.snr_db == {"states": 300.0}
        assert (m.accuracy.num_images, m.accuracy.top1) == (5, None)
        assert m.accuracy.agreement_with_fp32 is None
        assert m.peak_memory_mib is None or m.peak_memory_mib > 20


def test_two_outputs_of_a_fixed_batch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = Tensors({"images": pictures(3)})
    bundle = bundle_of(tmp_path, detector(tmp_path / "d.onnx"), samples)
    assert bundle.inputs[0].shape == (1, 3, 16, 16)
    report = verify(bundle.root, threads=1)
    assert report.ok
    assert "boxes: relative error" in str(report)
    assert "confidences: relative error" in str(report)
    assert main(["bench", str(bundle.root), *QUICK]) == 0  # at the one batch that it takes
    table = capsys.readouterr().out
    assert "samples/s (batch 1)" in table
    assert "SNR of other by output, dB: boxes 300.0, confidences 300.0" in table
    assert main(["bench", str(bundle.root), "--batch", "1", "32", *QUICK]) == 2
    assert "fp32 takes a batch of 1 only, not [1, 32]: give --batch 1" in capsys.readouterr().err


def test_labels_give_the_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = classifier(tmp_path / "c.onnx")
    plain = bundle_of(tmp_path / "plain", path, Tensors({"pixels": pictures(6)}), "probabilities")
    classes = plain.expected()["fp32"].argmax(axis=1)
    classes[0] = (classes[0] + 1) % 4  # one that the network gets wrong
    bundle = bundle_of(tmp_path, path, Tensors({"pixels": pictures(6)}, classes), "probabilities")
    assert bundle.labels == tuple(classes.tolist())
    (latency, _) = bench(bundle, variants=["fp32"], threads=1, batches=[2], seconds=0.003, warmup_s=0)
    assert latency.accuracy.top1 == pytest.approx(5 / 6)
    assert latency.accuracy.agreement_with_fp32 == 1.0
    file = tmp_path / "test.npz"
    np.savez(file, pixels=pictures(6)[1:], labels=classes[1:])
    assert main(["verify", str(bundle.root), "--inputs", str(file)]) == 0
    assert "top-1 100.00%, the class of FP32 on 100.00%, probabilities" in capsys.readouterr().out
    np.savez(file, pixels=pictures(6), labels=classes + 1)
    assert main(["bench", str(bundle.root), "--inputs", str(file), *QUICK]) == 2
    assert "must be class indexes from 0 to 3" in capsys.readouterr().err


def test_verify_fails_where_an_output_differs(tmp_path: Path) -> None:
    samples = Tensors({"images": pictures(3)})
    bundle = bundle_of(tmp_path, detector(tmp_path / "d.onnx"), samples, shift=0.05)
    failed = {c.name for c in verify(bundle.root, threads=1).checks if c.status == "FAIL"}
    assert failed == {"fp32, as written", "fp32, optimised"}


def test_the_two_kinds_of_samples_are_not_mixed_up(
    texts: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tiny_bundle(tmp_path / "images")
    photos = str(images.root.parent / "photos")
    for command in ("bench", "verify"):
        assert main([command, str(texts.root), "--images", photos]) == 2
        assert "does not classify image files: give --inputs FILE.npz" in capsys.readouterr().err
        assert main([command, str(images.root), "--inputs", "x.npz"]) == 2
        assert "its samples are image files: leave --inputs out" in capsys.readouterr().err


def test_a_bundle_of_schema_1_still_opens(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path)
    answers = bundle.expected()
    np.savez(bundle.root / "samples" / "expected.npz", **answers)  # type: ignore[arg-type]
    raw = json.loads((bundle.root / "bundle.json").read_text())
    for key in ("inputs", "outputs", "class_output", "labels"):
        del raw[key]
    digest = file_sha256(bundle.root / "samples" / "expected.npz")
    raw |= {"schema": 1, "files": raw["files"] | {"samples/expected.npz": digest}}
    (bundle.root / "bundle.json").write_text(json.dumps(raw))
    old = open_bundle(bundle.root)
    assert replace(old, files={}) == replace(bundle, files={})
    np.testing.assert_array_equal(old.expected()["int8"], answers["int8"])
    assert verify(old.root).ok


def changed(bundle: Bundle, **changes: Any) -> Path:
    path = bundle.root / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return bundle.root


X = {"name": "ids", "dtype": "int64", "shape": [None, 6]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, "needs inputs, outputs"),
        ({"inputs": [X | {"dtype": "object"}]}, "is no tensor: needs name, dtype"),
        ({"inputs": [X | {"shape": [None, 0]}]}, "is no tensor"),
        ({"inputs": [X | {"shape": [None, None]}]}, "only the batch of an input may be free"),
        ({"outputs": [{"name": "states"}]}, "is no tensor"),
        ({"class_output": "states"}, "class_output 'states' is no output N x classes"),
        ({"labels": [-1]}, "a sample has label -1"),
        ({"labels": ["a"]}, "labels must be a int"),
    ],
)
def test_a_wrong_structure_is_named(texts: Bundle, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        open_bundle(changed(texts, **changes))


def test_a_model_with_other_ends_is_refused(texts: Bundle) -> None:
    for key, message in (("inputs", r"inputs \['ids', 'mask'\], the bundle says \['tokens', 'mask'\]"),
                         ("outputs", r"outputs \['states'\], the bundle says \['state'\]")):  # fmt: skip
        raw = json.loads((texts.root / "bundle.json").read_text())[key]
        other = [raw[0] | {"name": "tokens" if key == "inputs" else "state"}, *raw[1:]]
        root = changed(texts, **{key: other})
        with pytest.raises(LabError, match=message):
            open_runner(read_manifest(root), "fp32")
        changed(texts, **{key: raw})


def test_expected_must_have_every_output(tmp_path: Path) -> None:
    samples = Tensors({"images": pictures(3)})
    bundle = bundle_of(tmp_path, detector(tmp_path / "d.onnx"), samples)
    with pytest.raises(LabError, match=r"expected confidences of fp32: not there"):
        write_tensor_bundle(
            tmp_path / "other", name="x", input=None, inputs=bundle.inputs, outputs=bundle.outputs,
            class_output=None, variants=bundle.variants[:1], models={"fp32": bundle.path("fp32")},
            samples=samples, expected={"fp32": {"boxes": bundle.answers()["fp32"]["boxes"]}}, versions={},
            commands=[],
        )  # fmt: skip
    assert not (tmp_path / "other").exists()


def test_a_score_is_of_all_batches(tmp_path: Path) -> None:
    samples = Tensors({"images": pictures(5)})
    ours = bundle_of(tmp_path / "a", detector(tmp_path / "a.onnx", batch="n"), samples)
    other = bundle_of(tmp_path / "b", detector(tmp_path / "b.onnx", batch="n", seed=3), samples)
    with open_runner(ours, "fp32", threads=1) as fp32, open_runner(other, "fp32", threads=1) as wrong:
        runners = {"fp32": fp32, "wrong": wrong}
        found = [score(runners, samples.batches(size), None, "fp32")["wrong"].snr_db for size in (1, 2, 5)]
    a, b = (bundle.answers()["fp32"]["boxes"].astype(float) for bundle in (ours, other))
    for one in found:
        assert one is not None
        assert one["boxes"] == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-3)


class Answer:
    """Answers what it was given, whatever it is asked."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array
        self.inputs = (TensorSpec("x", "float32", (None,)),)

    def infer(self, feed: Any) -> dict[str, Any]:
        return {"boxes": self.array}


def test_scores_are_seen_beside_pixels() -> None:
    rng = np.random.default_rng(0)
    right = np.concatenate([rng.uniform(0, 400, (1, 4, 50)), rng.uniform(0, 1, (1, 2, 50))], axis=1)
    no_scores = right.copy()
    no_scores[:, 4:] = 0
    runners: Any = {"fp32": Answer(right), "int8": Answer(no_scores)}
    found = score(runners, [Tensors({"x": np.zeros(1, np.float32)})], None, "fp32")
    assert found["int8"].snr_db is not None
    assert found["int8"].snr_db["boxes"] == pytest.approx(0.0)  # in one ratio it would be 55 dB
    assert found["fp32"].snr_db == {"boxes": 300.0}


def test_ratios_are_finite() -> None:
    assert ratio_db(1.0, 0.01) == pytest.approx(20.0)
    assert (ratio_db(1.0, 0.0), ratio_db(0.0, 1.0), ratio_db(1.0, float("nan"))) == (300.0, -300.0, -300.0)
