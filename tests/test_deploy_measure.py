"""The percentile rule, the records, and what the table says aloud."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.accuracy import agreement, list_images, top1
from deploy.errors import LabError
from deploy.machine import describe_machine
from deploy.measure import measure_latency, measure_throughput, percentile, summarise
from deploy.results import Accuracy, Measurement, Rule, append_measurements, read_measurements
from deploy.table import format_table, rows
from tests.test_deploy_bundle import SPEC, image_folder


def measurement(variant: str = "fp32", p50_ms: float = 2.0, **changes: object) -> Measurement:
    samples = (p50_ms, p50_ms, p50_ms * 1.1)
    made = Measurement(
        kind="latency",
        variant=variant,
        backend="onnxruntime",
        backend_version="1.2.3",
        made_for="onnxruntime",
        precision=variant,
        batch=1,
        threads=2,
        machine={"cpu": "a cpu", "device": None, "int8_dot_product": True},
        rule=Rule(warmup_s=0.2, duration_s=3.0, count=3, rounds=3),
        latency=summarise(samples),
        throughput_images_per_s=None,
        peak_memory_mib=55.5,
        accuracy=Accuracy(0.9, 1000, 0.99),
        file_bytes=3 << 20,
        sha256="ab" * 32,
        latency_samples_ms=samples,
        created="2026-01-01T00:00:00+00:00",
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("count", "p", "value"),
    [
        (100, 99, 99),  # one lies above
        (100, 90, 90),
        (1000, 99.9, 999),
        (10, 99, 10),  # too few for a p99: the largest
        (10, 90, 9),
        (7, 90, 7),
        (1, 99, 1),
        (4, 50, 2.5),
        (5, 50, 3),
        (100, 100, 100),
    ],
)
def test_percentile_is_trtexecs(count: int, p: float, value: float) -> None:
    samples = np.random.default_rng(0).permutation(np.arange(1.0, count + 1)).tolist()
    assert percentile(samples, p) == value


def test_percentile_needs_a_sample_and_a_share() -> None:
    for samples, p in [([], 50), ([1.0], 0), ([1.0], 101)]:
        with pytest.raises(ValueError, match="needs 0 < p <= 100"):
            percentile(samples, p)


def test_summary_clips_nothing() -> None:
    found = summarise([1.0] * 9 + [11.0])
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.mean_ms) == (1.0, 1.0, 11.0, 2.0)
    assert found.cv == pytest.approx(1.5)
    assert (found.min_ms, found.max_ms) == (1.0, 11.0)


def test_a_p99_9_needs_a_thousand_samples() -> None:
    samples = [float(i) for i in range(1, 1001)]
    assert summarise(samples[:999]).p99_9_ms is None
    assert summarise(samples).p99_9_ms == 999


def test_counts_of_calls() -> None:
    calls = []
    samples = measure_latency(lambda: calls.append(1), warmup_s=0, min_duration_s=0, min_count=7)
    assert (len(samples), len(calls)) == (7, 8)  # one untimed call before
    images, seconds = measure_throughput(lambda: calls.append(1), 32, min_duration_s=0, min_count=5)
    assert images == 160
    assert seconds > 0


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    one, two = measurement(), measurement("int8", 1.0, latency=None, kind="throughput", latency_samples_ms=())
    append_measurements(path, [one])
    append_measurements(path, [two])
    assert read_measurements(path) == [one, two]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a measurement"),
        (json.dumps({"schema": 9}), "schema 9, this edgelab reads up to 2; update edgelab"),
        (json.dumps({"schema": 2, "kind": "x"}), "missing .*'variant'"),
        (measurement().to_json().replace('"top1"', '"top_one"'), "top_one"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "results.jsonl"
    append_measurements(path, [measurement()])
    with path.open("a") as stream:
        stream.write(bad + "\n")
    with pytest.raises(LabError, match=rf"results\.jsonl, line 2: .*{message}"):
        read_measurements(path)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="cannot be written"):
        append_measurements(tmp_path, [measurement()])


def test_table_shows_both_figures_of_a_variant() -> None:
    fast = measurement("int8", 0.5)
    many = replace(fast, kind="throughput", latency=None, batch=32, throughput_images_per_s=1234.0)
    text = format_table([measurement(), fast, many])
    head, line, fp32, int8 = text.splitlines()
    assert "p50 ms (batch 1)" in head
    assert "images/s (batch 32)" in head
    assert set(line) == {"-"}
    assert " ".join(fp32.split()) == "fp32 fp32 90.00% 99.00% 3.00 2.000 2.200 - 56 1.00x"
    assert " ".join(int8.split()) == "int8 int8 90.00% 99.00% 3.00 0.500 0.550 1234 56 4.00x"
    assert head.index("precision") == fp32.index("fp32", 4)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"made_for": "tensorrt"}, "made for tensorrt. Its S8 Q/DQ form"),
        ({"machine": {"cpu": "a cpu", "device": None, "int8_dot_product": False}}, "no INT8 dot product"),
        ({}, "network is probably too small"),
    ],
)
def test_a_slow_int8_is_said_loudly(changes: dict[str, object], cause: str) -> None:
    text = format_table([measurement(), measurement("int8", 3.0, **changes)])
    elsewhere = {"backend": "openvino", **changes}  # its kernels take S8 as well as U8
    fp32 = measurement(backend="openvino")
    assert "made for tensorrt" not in format_table([fp32, measurement("int8", 3.0, **elsewhere)])
    assert "WARNING: int8 is SLOWER than fp32 (0.67x)" in text
    assert cause in text
    assert "WARNING" not in format_table([measurement(), measurement("int8", 1.0, **changes)])


def test_a_cpu_without_a_dot_product_is_named() -> None:
    machine = {"cpu": "a cpu", "device": None, "int8_dot_product": False}
    rows = [measurement(machine=machine), measurement("int8", 1.5, machine=machine)]
    assert "note: this CPU has no INT8 dot product" in format_table(rows)
    assert "note:" not in format_table([measurement(), measurement("int8", 1.5)])


def test_a_noisy_machine_is_named() -> None:
    noisy = measurement("int8", latency=summarise([1.0, 1.0, 9.0]))
    assert "note: int8: latency varies by" in format_table([measurement(), noisy])


def test_two_backends_of_one_variant_are_two_rows() -> None:
    both = [measurement(), measurement(p50_ms=1.0, backend="openvino")]
    many = [replace(m, kind="throughput", latency=None, throughput_images_per_s=9.0) for m in both]
    found = rows([*both, *many])
    assert [row.name for row in found] == ["fp32 (onnxruntime)", "fp32 (openvino)"]
    assert [row.throughput for row in found] == many
    assert [row.speedup for row in found] == [1.0, 1.0]
    assert "fp32 (openvino)" in format_table([*both, *many])


def test_no_speedup_across_machines_or_threads() -> None:
    elsewhere = measurement("int8", 0.5, machine={"cpu": "another", "device": None})
    narrower = measurement("int4", 0.5, threads=1)
    assert [row.speedup for row in rows([measurement(), elsewhere, narrower])] == [1.0, None, None]


def test_top1_and_agreement() -> None:
    logits = np.array([[2, 1], [0, 1], [5, 4], [0, 3]], np.float32)
    assert top1(logits, [0, 1, 1, 1]) == 0.75
    assert agreement(logits, -logits) == 0
    assert agreement(logits, logits * 2) == 1


def test_images_of_a_folder(tmp_path: Path) -> None:
    made = image_folder(tmp_path / "test")
    (tmp_path / "test" / "red" / ".DS_Store").touch()
    assert list_images(tmp_path / "test", SPEC.class_names) == sorted(made)


def test_a_folder_of_other_classes(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for names, message in [
        (("red", "blue"), r"missing \['blue'\], unknown \['green'\]"),
        (("red", "green", "blue"), r"missing \['blue'\], unknown \[\]"),
    ]:
        with pytest.raises(LabError, match=message):
            list_images(tmp_path, names)
    (tmp_path / "red" / "notes.txt").touch()
    with pytest.raises(LabError, match=r"notes\.txt: must end in one of"):
        list_images(tmp_path, SPEC.class_names)


def test_machine_is_plain_json_and_names_nobody() -> None:
    import socket

    facts = describe_machine()
    text = json.dumps(facts)
    assert facts["cores"] >= 1
    assert facts["versions"]["numpy"] == np.__version__
    assert socket.gethostname() not in text
