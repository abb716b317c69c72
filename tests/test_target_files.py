"""Targets of a bundle: which are refused, what travels for them, and what a device is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from configs.quantize import QuantizeConfig
from deploy.__main__ import main
from deploy.bundle import Bundle, Variant, open_bundle, write_bundle
from deploy.errors import LabError
from deploy.target import DLA_BACKEND, load_target
from optimize.targets import describe, need_dla_files, tell
from tests.test_deploy_bundle import SPEC, tiny_bundle

VARIANTS = [
    Variant("fp32", "", "fp32", "onnxruntime", 1, {}, {}),
    Variant("int8-cpu", "", "int8", "onnxruntime", 1, {}, {}),
    Variant("int8", "", "int8", "tensorrt", 1, {}, {}),
    Variant("fp16", "", "fp16", "tensorrt", 1, {}, {}),
    Variant("dla", "", "int8", DLA_BACKEND, 1, {}, {}),
]


def config(*overrides: str) -> QuantizeConfig:
    return load("quantize_and_benchmark", QuantizeConfig, ["checkpoint=c", *overrides])


def test_no_target_is_named_unless_somebody_does() -> None:
    assert config().targets == []
    chosen = config("targets=[orin_nx_16gb:40W,cpu]", "precisions=[int8,int8-weights]")
    assert chosen.targets == ["orin_nx_16gb:40W", "cpu"]


def test_targets_mistakes_are_told_all_at_once() -> None:
    with pytest.raises(LabError) as caught:
        config("targets=[orin,xavier_nx,cpu]", "precisions=[int8,bf16]")
    told = str(caught.value)
    for words in (
        "target 'orin': unknown, there are: a100",
        "target xavier_nx: there for estimates alone",
        "target xavier_nx: Jetson Xavier NX has no bf16; it has: int8, fp16, fp32",
        "target cpu: this machine's CPU has no bf16; it has: int8, fp32: take it out of precisions",
    ):
        assert words in told
    assert "has no int8" not in told


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        ([], False),
        (["orin_nano_8gb", "h100", "cpu", "thor_t5000"], False),
        (["orin_nano_8gb", "agx_orin_32gb"], True),
        (["orin_nx_8gb"], True),
    ],
)
def test_files_for_dla_are_made_where_a_jetpack_takes_them(names: list[str], needed: bool) -> None:
    assert need_dla_files([load_target(name) for name in names]) is needed


def test_each_jetpack_is_told_what_runs_on_dla_and_why() -> None:
    names = ("agx_orin_64gb", "orin_nano_8gb:MAXN_SUPER", "cpu")
    agx, nano, cpu = describe([load_target(name) for name in names], VARIANTS)["targets"]
    assert agx["variants"] == nano["variants"] == ["int8", "fp16"]
    assert cpu["variants"] == ["fp32", "int8-cpu"]
    assert {j["version"]: j["dla"] for j in agx["jetpacks"]} == {
        "6.1": ["dla"], "6.2": ["dla"], "6.2.2": ["dla"], "7.2": [], "7.2.2": ["int8"],
    }  # fmt: skip
    assert nano["power_mode"] == "MAXN_SUPER"
    assert all(j["dla"] == [] and "no DLA cores" in j["why"] for j in nano["jetpacks"])


def test_the_words_name_every_jetpack_without_dla() -> None:
    told = " ".join(line.strip() for line in tell([load_target("orin_nx_16gb")], VARIANTS))
    assert told.startswith(
        "target orin_nx_16gb: int8, fp16 JetPack 6.1, 6.2, 6.2.2: for DLA dla. TensorRT 10.3"
    )
    assert "JetPack 7.2: for DLA none. The TensorRT 10.16 of this JetPack has no DLA support" in told
    without = tell([load_target("orin_nano_4gb")], VARIANTS[:2])
    assert without[0] == "target orin_nano_4gb: no variant"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """As `tiny_bundle`, with a third variant that needs two files beside it."""
    plain = tiny_bundle(tmp_path)
    cache = tmp_path / "some.cache"
    cache.write_text("TRT-100300-EntropyCalibration2\n")
    named = {"calibration_cache": "models/dla.cache"}
    dla = Variant("dla", "", "int8", DLA_BACKEND, 6, {}, {}, named)
    expected = plain.expected()
    assert plain.input is not None
    return write_bundle(
        tmp_path / "more",
        name="more",
        input=SPEC,
        variants=[*plain.variants, dla],
        models={v.name: plain.path(v.name) for v in plain.variants} | {"dla": plain.path("int8")},
        samples=[(p, s.label) for p, s in zip(plain.sample_paths(), plain.samples, strict=True)],
        expected=expected | {"dla": expected["int8"]},
        versions={},
        commands=[],
        extras={"models/dla.cache": cache, "targets.json": cache},
    )


def test_artefacts_travel_with_their_sha256(bundle: Bundle) -> None:
    assert bundle.variant("dla").artefacts == {"calibration_cache": "models/dla.cache"}
    assert {"models/dla.cache", "targets.json"} <= bundle.files.keys()
    assert open_bundle(bundle.root) == bundle
    (bundle.root / "models/dla.cache").write_text("other\n")
    with pytest.raises(LabError, match=r"models/dla.cache was altered"):
        open_bundle(bundle.root)


def test_a_bundle_of_before_has_none(bundle: Bundle) -> None:
    path = bundle.root / "bundle.json"
    raw = json.loads(path.read_text())
    for variant in raw["variants"]:
        del variant["artefacts"]
    path.write_text(json.dumps(raw))
    assert open_bundle(bundle.root).variants == tuple(replace(v, artefacts={}) for v in bundle.variants)


@pytest.mark.parametrize(
    ("artefacts", "told"),
    [
        ({"calibration_cache": "models/other.cache"}, "no SHA-256 in 'files' for .*other.cache"),
        ({"calibration_cache": 3}, "artefacts must be names of files"),
        (["models/dla.cache"], "artefacts must be a dict"),
    ],
)
def test_wrong_artefacts_are_refused(bundle: Bundle, artefacts: Any, told: str) -> None:
    path = bundle.root / "bundle.json"
    raw = json.loads(path.read_text())
    raw["variants"][-1]["artefacts"] = artefacts
    path.write_text(json.dumps(raw))
    with pytest.raises(LabError, match=told):
        open_bundle(bundle.root)


def test_a_file_that_is_not_there_writes_no_bundle(bundle: Bundle, tmp_path: Path) -> None:
    expected = bundle.expected()
    assert bundle.input is not None
    with pytest.raises(LabError, match=r"gone.cache is not there"):
        write_bundle(
            tmp_path / "again", name="x", input=SPEC, variants=bundle.variants,
            models={v.name: bundle.path(v.name) for v in bundle.variants},
            samples=[(p, 0) for p in bundle.sample_paths()], expected=expected, versions={}, commands=[],
            extras={"models/dla.cache": tmp_path / "gone.cache"},
        )  # fmt: skip
    assert not (tmp_path / "again").exists()


def test_a_device_without_dla_says_what_it_does_not_run(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle.root), "--threads", "1"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("info  dla"))
    assert line.endswith("not run: its INT8 is in a calibration cache, which only TensorRT on a DLA reads")
    assert main(["bench", str(bundle.root), "--seconds", "0.003", "--warmup", "0", "--threads", "1"]) == 0
    assert "not timed: dla, made for tensorrt-dla" in capsys.readouterr().out
