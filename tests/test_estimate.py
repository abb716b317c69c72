"""Estimates of a bundle on targets: the formula by hand, what it must not break, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.bundle import Bundle, Variant, write_bundle
from deploy.cpu_model import CpuCeilings, PassCeiling, ProductCeiling
from deploy.errors import LabError
from deploy.estimate import estimate
from deploy.graph_cost import Layer
from deploy.input_spec import InputSpec
from deploy.latency_model import (
    Constants,
    Fitted,
    PowerFit,
    Processor,
    dla_images_per_s,
    layer_seconds,
    watts,
    work_of,
)
from deploy.processor import processor_of
from deploy.target import load_target
from optimize.calibrate import Scales
from optimize.precision import to_bf16, to_fp16
from optimize.qdq import emit
from optimize.qdq_placement import quantised_tensors
from tests.pictures import save
from tests.residual_graph import SIZE, residual, saved

FITTED = Fitted(
    launch_clocks=1000.0, product_share=0.5, load_bytes=1e9, memory_share=0.5, cache_share=0.0,
    volta_launch=2.0, untuned=1.0, dla_product_share=0.5, dla_memory_share=0.25,
)  # fmt: skip
PROCESSOR = Processor(
    num_sms=4, clock_ghz=1.0, ops_per_clock_per_sm={"int8": 4096.0, "fp32": 256.0}, memory_gb_per_s=100.0,
    l2_mib=4.0, volta=False, dla_ghz=(1.0, 0.5), dla_ops_per_clock=16384.0,
)  # fmt: skip
LAYER = Layer(
    name="conv", kind="conv", precision="int8", rows=1024, columns=128, depth=512, groups=1,
    num_parameters=65536, weight_bytes=65536, read_bytes=500_000, write_bytes=131_072,
    output_shape=(1, 128, 32, 32),
)  # fmt: skip


def seconds(layer: Layer, processor: Processor = PROCESSOR, fitted: Fitted = FITTED) -> float:
    return float(layer_seconds(work_of([layer], processor), processor, fitted).sum())


def test_a_layer_that_products_hold_back_computed_by_hand() -> None:
    """1024 x 128 outputs are 4 tiles of 256 x 128, one an SM, at half of 4096 operations a clock."""
    clocks = 1000 + 2 * 256 * 128 * 512 / (4096 * 0.5)
    fast = replace(PROCESSOR, memory_gb_per_s=1e6)
    assert seconds(LAYER, fast) == pytest.approx(clocks / 1e9)


def test_a_layer_that_memory_holds_back_computed_by_hand() -> None:
    slow = replace(PROCESSOR, memory_gb_per_s=10.0)
    moved = 65536 + 500_000 + 131_072
    assert seconds(LAYER, slow) == pytest.approx(1000 / 1e9 + moved / (10e9 * 0.5))
    cached = replace(FITTED, cache_share=1.0)  # 4 MiB hold all of it
    assert seconds(LAYER, slow, cached) < seconds(LAYER, slow) / 2


def test_idle_sms_cost_what_busy_ones_do() -> None:
    """A fifth tile makes a second wave: as long as eight."""
    fast = replace(PROCESSOR, memory_gb_per_s=1e6)
    wide = {rows: seconds(replace(LAYER, rows=rows, depth=1 << 20), fast) for rows in (1024, 2048)}
    assert wide[2048] / wide[1024] == pytest.approx(2, rel=0.01)
    few = replace(LAYER, rows=32, columns=32, depth=1 << 20)
    assert seconds(few, fast) == pytest.approx(seconds(few, replace(fast, num_sms=8)))


def test_it_never_gets_slower_by_more_clock_or_bandwidth_nor_quicker_by_more_work() -> None:
    for rows in (49, 784, 12544, 100_000):
        layer = replace(LAYER, rows=rows, read_bytes=rows * 512, write_bytes=rows * 128)
        base = seconds(layer)
        assert seconds(layer, replace(PROCESSOR, clock_ghz=1.5)) <= base
        assert seconds(layer, replace(PROCESSOR, memory_gb_per_s=150.0)) <= base
        assert seconds(layer, replace(PROCESSOR, num_sms=8)) <= base
        more = replace(
            layer, rows=2 * rows, read_bytes=2 * layer.read_bytes, write_bytes=2 * layer.write_bytes
        )
        assert base <= seconds(more) <= 2 * base * 1.0001 + 1e-6
    assert seconds(LAYER, replace(PROCESSOR, volta=True)) == pytest.approx(seconds(LAYER) + 1e-6)


def test_dla_cores_add_up_each_at_its_own_clock() -> None:
    one = replace(PROCESSOR, dla_ghz=(1.0,), memory_gb_per_s=1e6)
    ops = 2 * 1024 * 128 * 512
    assert dla_images_per_s([LAYER], one, FITTED, 1) == pytest.approx(16384e9 * 0.5 / ops)
    both = replace(PROCESSOR, memory_gb_per_s=1e6)
    assert dla_images_per_s([LAYER], both, FITTED, 1) == pytest.approx(1.5 * 16384e9 * 0.5 / ops)
    assert dla_images_per_s([LAYER], replace(PROCESSOR, dla_ghz=()), FITTED, 1) == 0


def test_watts_are_the_boards_the_memorys_and_the_operations() -> None:
    power = PowerFit(board_w=5.0, memory_w_per_gb_per_s=0.1, pj_per_op=0.5, volta_pj_per_op=2.0)
    assert watts(PROCESSOR, 4e12, power) == pytest.approx(5 + 10 + 2)
    assert watts(replace(PROCESSOR, volta=True), 4e12, power) == pytest.approx(5 + 10 + 8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("estimate")
    model = residual()
    fp32 = saved(model, folder)
    scales = Scales("none", 1, {t.name: 0.1 for t in quantised_tensors(model)})
    models = {"fp32": fp32}
    for name, form in (("int8", "s8"), ("int8-cpu", "u8")):
        (folder / name).mkdir()
        models[name] = saved(emit(model, scales, form), folder / name)  # type: ignore[arg-type]
    for name, write in (("fp16", to_fp16), ("bf16", to_bf16)):
        models[name] = folder / f"{name}.onnx"
        write(fp32, models[name])
    backends = {"fp32": "onnxruntime", "int8-cpu": "onnxruntime"}
    names = tuple(f"class{i}" for i in range(10))
    save(folder / "a.png", SIZE, SIZE)
    return write_bundle(
        folder / "bundle",
        name="residual",
        input=InputSpec(size=SIZE, resize=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, class_names=names),
        variants=[
            Variant(n, "", n.removesuffix("-cpu"), backends.get(n, "tensorrt"), 1, {}, {}) for n in models
        ],
        models=models,
        samples=[(folder / "a.png", 0)],
        expected={name: np.zeros((1, 10), np.float32) for name in models},
        versions={},
        commands=[],
    )


def test_a_range_holds_its_middle_and_energy_follows_time(bundle: Bundle) -> None:
    found = estimate(bundle, load_target("orin_nano_8gb"), variants=["int8"], batches=[1, 32])
    for one in found:
        assert one.mode == "15W"
        assert one.latency_ms.low < one.latency_ms.p50 < one.latency_ms.high
        assert one.images_per_s.p50 == pytest.approx(one.batch * 1e3 / one.latency_ms.p50)
        assert one.images_per_s.low == pytest.approx(one.batch * 1e3 / one.latency_ms.high)
        assert sum(layer.ms for layer in one.layers) == pytest.approx(one.latency_ms.p50)
        assert one.energy_mj is not None
        assert one.energy_mj.low < one.energy_mj.p50 < one.energy_mj.high
    assert found[0].latency_ms.p50 < found[1].latency_ms.p50 < 32 * found[0].latency_ms.p50
    assert found[0].macs == found[1].macs
    spread, fitted = Constants.read().spread, Constants.read().latency
    wide = found[0].latency_ms.high / found[0].latency_ms.low
    assert wide == pytest.approx(spread.high * fitted.untuned / spread.low)


def test_a_faster_mode_is_faster_and_the_default_is_the_targets(bundle: Bundle) -> None:
    target = load_target("orin_nano_8gb")
    times = [
        estimate(bundle, target, mode=mode, variants=["int8"], batches=[1])[0].latency_ms.p50
        for mode in ("7W", None, "25W", "MAXN_SUPER")
    ]
    assert times == sorted(times, reverse=True)
    super_target = load_target("orin_nano_8gb:MAXN_SUPER")
    assert estimate(bundle, super_target, variants=["int8"], batches=[1])[0].latency_ms.p50 == times[-1]


def test_what_a_target_runs_is_estimated_by_default(bundle: Bundle) -> None:
    def names(target: str) -> list[str]:
        return [one.variant for one in estimate(bundle, load_target(target), batches=[1])]

    assert names("orin_nano_8gb") == ["fp32", "int8", "fp16", "bf16"]
    assert names("agx_xavier") == ["fp32", "int8", "fp16"]  # Volta has no bfloat16


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("agx_xavier", ["is for estimates alone", "ResNet-50 at 224 px alone"]),
        ("thor_t5000", ["no figure is published for a target of this generation", "No published energy"]),
        ("h100", ["No published energy"]),
    ],
)
def test_what_the_estimate_cannot_know_is_said(bundle: Bundle, target: str, wanted: list[str]) -> None:
    (one,) = estimate(bundle, load_target(target), variants=["int8"], batches=[1])
    for words in wanted:
        assert any(words in note for note in one.notes)
    assert (one.energy_mj is None) == (target != "agx_xavier")
    assert (one.dla_images_per_s is not None) == (target == "agx_xavier")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "orin_zero"], "target 'orin_zero': unknown, there are:"),
        (["--target", "h100", "--mode", "MAXN"], "no power mode 'MAXN'; there are: default"),
        (["--target", "h100", "--variant", "int4"], "no variant 'int4'; there are: fp32, int8"),
        (["--target", "agx_xavier", "--variant", "bf16"], "has no bf16; it has: int8, fp16, fp32"),
        (["--target", "h100", "--variant", "int8-cpu"], "made for onnxruntime on a CPU"),
        (["--target", "h100", "--batch", "0"], "batch [0]: each must be at least 1"),
        (["--target", "h100", "--ceilings", "x.json"], "only the target cpu takes them"),
        (["--target", "cpu"], "python -m scripts.roofline --json"),
        (["--target", "cpu", "--ceilings", "absent.json"], "absent.json: no ceilings of a CPU"),
    ],
)
def test_mistakes_are_told(
    bundle: Bundle, arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(bundle.root), *arguments]) == 2
    assert told in capsys.readouterr().err


def test_it_prints_a_table_or_json(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["estimate", str(bundle.root), "--target", "orin_nx_16gb", "--variant", "int8"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("orin_nx_16gb in MAXN: estimated, not measured")
    assert [line.split()[:2] for line in lines[3:5]] == [["int8", "1"], ["int8", "32"]]
    assert any(line.startswith("note: DLA cores are not in these figures") for line in lines)
    assert main([*command, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["latency_ms"]["p50"] > 0
    assert [layer["name"] for layer in first["layers"]][1:4] == ["stem", "a1", "a2"]


CEILINGS = CpuCeilings(
    cpu="a CPU", threads=2, runtime="onnxruntime", layer_us=10.0,
    products=(
        ProductCeiling("fp32", 64, 16, 144, False, 50.0), ProductCeiling("int8", 64, 16, 144, False, 200.0),
    ),
    passes=(PassCeiling(1 << 12, 1000.0), PassCeiling(1 << 28, 10.0)),
)  # fmt: skip


def test_a_cpus_layer_computed_by_hand(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "roofline.json"
    CEILINGS.write(file)
    assert CpuCeilings.read(file) == CEILINGS
    found = estimate(bundle, load_target("cpu"), batches=[1], ceilings=file)
    assert [one.variant for one in found] == ["fp32", "int8-cpu"]
    a1 = next(layer for layer in found[0].layers if layer.name == "a1")
    weights = 4 * (16 * 144 + 16)
    assert a1.ms == pytest.approx(1e3 * (10e-6 + weights / 10e9 + 2 * 64 * 16 * 144 / 50e9))
    pool = next(layer for layer in found[0].layers if layer.kind == "pool")
    assert pool.ms == pytest.approx(1e3 * (10e-6 + 4 * 24 * (64 + 1) / 1000e9))


def test_ceilings_that_lack_something_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "roofline.json"
    replace(CEILINGS, products=CEILINGS.products[:1]).write(file)
    with pytest.raises(LabError, match="the ceilings have no int8, only fp32"):
        estimate(bundle, load_target("cpu"), batches=[1], ceilings=file)
    file.write_text(file.read_text().replace("layer_us", "layer_ms"))
    with pytest.raises(LabError, match=r"keys \['layer_ms', 'layer_us'\]"):
        CpuCeilings.read(file)


def test_a_target_gives_the_processor_of_its_mode() -> None:
    target = load_target("agx_orin_64gb")
    found = processor_of(target, "MODE_30W")
    assert (found.num_sms, found.clock_ghz, found.memory_gb_per_s) == (8, 0.612, 204.8)
    assert found.ops_per_clock_per_sm == {"int8": 4096, "fp16": 2048, "bf16": 2048, "fp32": 1024}  # as TF32
    assert found.dla_ghz == (1.3696, 1.3696)
    assert processor_of(load_target("xavier_nx")).volta
    with pytest.raises(LabError, match="its L2 cache is not known"):
        processor_of(replace(target, l2_cache_mib=None))
