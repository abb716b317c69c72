"""Targets: what their files promise, and what a mistake in one gets."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import target as target_module
from deploy.__main__ import main
from deploy.errors import LabError
from deploy.target import TARGET_DIR, load_target, target_names
from deploy.target_file import NO_DLA, read_jetpacks, read_target

NAMES = [
    "a100", "agx_orin_32gb", "agx_orin_64gb", "agx_xavier", "cpu", "h100", "h200", "l4", "orin_nano_4gb",
    "orin_nano_8gb", "orin_nx_16gb", "orin_nx_8gb", "thor_t4000", "thor_t5000", "xavier_nx",
]  # fmt: skip
# NVIDIA counts less of the Xaviers than the clocks in its own files give; their sources say so.
TOLERANCE = {"agx_xavier": 0.07, "xavier_nx": 0.08}


def test_every_target_is_there() -> None:
    assert target_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_derived_peaks_are_the_advertised_ones(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert bool(target.advertised) == (target.kind != "cpu")
    for one in target.advertised:
        peak = target.peak_tops(one.precision, one.mode)
        cores = target.dla_peak_tops(one.precision, one.mode) if one.with_dla else 0.0
        assert peak is not None
        assert cores is not None
        derived = (peak + cores) * (2 if one.sparse else 1)
        # Printed figures are whole, and 40.96 is printed as 40.
        allowed = max(TOLERANCE.get(name, 0.02) * one.tops, 1.0 if one.tops < 50 else 0.0)
        assert math.isclose(derived, one.tops, abs_tol=allowed)


def test_a_power_mode_is_part_of_the_name() -> None:
    plain, fast = load_target("orin_nano_8gb"), load_target("orin_nano_8gb:maxn_super")
    assert (plain.mode().name, fast.mode().name) == ("15W", "MAXN_SUPER")
    assert plain.peak_tops("int8", "MAXN_SUPER") == fast.peak_tops("int8") == pytest.approx(33.4, rel=0.01)
    assert fast.mode().memory_gb_per_s > plain.mode().memory_gb_per_s


def test_what_a_target_cannot_do() -> None:
    assert not load_target("xavier_nx").supports("bf16")
    with pytest.raises(LabError, match=r"Jetson Xavier NX has no bf16; it has: int8, fp16, fp32"):
        load_target("xavier_nx").peak_tops("bf16")
    nano = load_target("orin_nano_8gb")
    assert nano.dla_peak_tops("int8") == 0.0
    assert {(j.dla, j.why) for j in nano.jetpacks} == {("none", NO_DLA)}
    assert load_target("orin_nx_8gb").dla_peak_tops("fp16") is None
    assert load_target("cpu").peak_tops("int8") is None
    with pytest.raises(LabError, match="its ceilings are measured"):
        load_target("cpu").mode()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("orin_nano_8gb_super", "orin_nano_8gb:MAXN_SUPER"),
        ("h100:eco", "no power mode 'eco'; there are: default"),
    ],
)
def test_an_unknown_name_is_told_with_the_known_ones(name: str, told: str) -> None:
    with pytest.raises(LabError, match=told):
        load_target(name)


def test_the_route_to_dla_depends_on_the_jetpack() -> None:
    routes = {jetpack.version: jetpack.dla for jetpack in load_target("agx_orin_64gb").jetpacks}
    assert routes == {
        "6.1": "calibration-cache",
        "6.2": "calibration-cache",
        "6.2.2": "calibration-cache",
        "7.2": "none",
        "7.2.2": "strongly-typed",
    }
    assert "7.2.2" not in {jetpack.version for jetpack in load_target("orin_nx_16gb").jetpacks}
    assert all(
        jetpack.tensorrt.startswith("10.3")
        for jetpack in read_jetpacks().values()
        if "6" in jetpack.version[0]
    )


def changed(folder: Path, name: str, **changes: Any) -> Path:
    """A copy of a target's file with keys in the place of others; 'gone' takes a key away."""
    raw = yaml.safe_load((TARGET_DIR / f"{name}.yaml").read_text())
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (raw | changes).items() if v != "gone"}))
    return path


def refusal(path: Path) -> list[str]:
    """The lines about mistakes."""
    with pytest.raises(LabError) as caught:
        read_target(path)
    return sorted(line.strip() for line in str(caught.value).splitlines()[1:])


def test_a_files_mistakes_are_told_all_at_once(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        "orin_nx_16gb",
        kind="phone",
        title="gone",
        memory_gib="16",
        dla={"num_cores": True, "ops_per_clock_per_core": {}, "max_loadables_per_core": 16},
        shared_memory=1,
        wats=5,
        ops_per_clock_per_sm={"int7": 1},
        jetpacks=["6.2", "9.9"],
    )
    found = refusal(path)
    assert [line.partition(":")[0] for line in found] == [
        "dla.num_cores", "jetpacks", "kind", "memory_gib", "ops_per_clock_per_sm", "shared_memory", "title",
        "wats",
    ]  # fmt: skip
    assert "kind: must be one of jetson, gpu, cpu, got 'phone'" in found
    assert "memory_gib: must be a number, got '16'" in found


def test_impossible_values_are_told_all_at_once(tmp_path: Path) -> None:
    mode = {"name": "a", "num_sms": 4, "gpu_mhz": 0, "memory_gb_per_s": 1.0, "watts": -3, "dla_mhz": [600]}
    path = changed(
        tmp_path, "orin_nx_16gb", power_modes=[mode, {**mode, "name": "A", "gpu_mhz": 5}], default_mode="MAXN"
    )
    found = "\n".join(refusal(path))
    for told in (
        "power_modes.a.gpu_mhz: must be more than 0, got 0.0",
        "power_modes.a.watts: must be more than 0, got -3.0",
        "each name may be there once",
        "default_mode: no power mode 'MAXN'",
        "1 clocks for 2 DLA cores",
        "advertised.0.mode: no power mode 'MAXN'",
    ):
        assert told in found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cpu"])
def test_every_figure_has_a_source(name: str, tmp_path: Path) -> None:
    sources = yaml.safe_load((TARGET_DIR / f"{name}.yaml").read_text())["sources"]
    none = refusal(changed(tmp_path, name, sources=[]))
    assert all(line.endswith(": no source names it") for line in none)
    assert len(none) >= 10  # rates, modes, memory, the advertised figures
    stray = [*sources, {"figures": ["dla.speed"], "kind": "derived", "text": "x"}]
    assert refusal(changed(tmp_path, name, sources=stray)) == [
        "sources: dla.speed names no figure of this file"
    ]


def test_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.yaml"
    for text, told in (("a: [", "cannot be read as YAML"), ("- 1", "expected a mapping")):
        path.write_text(text)
        with pytest.raises(LabError, match=told):
            read_target(path)
    monkeypatch.setattr(target_module, "TARGET_DIR", tmp_path / "nowhere")
    with pytest.raises(LabError, match="copy the folder configs/ beside deploy/"):
        load_target("h100")


def test_the_command_lists_them_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(NAMES)]] == NAMES
    row = next(line for line in lines if line.startswith("orin_nx_16gb "))
    assert row.split()[1:] == [
        "MAXN",
        "30.1",
        "15.0",
        "102.4",
        "16",
        "2",
        "20.1",
        "6.1,",
        "6.2,",
        "6.2.2,",
        "7.2",
    ]
    edge = lines[0].index("GB/s") + len("GB/s")
    assert {line[edge - 1 : edge + 1] for line in lines[2:5]} == {"0 ", "8 "}


def test_the_command_tells_one_with_modes_jetpacks_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", "orin_nx_16gb:40W"]) == 0
    told = capsys.readouterr().out
    assert "40W *" in told
    assert "908.8 908.8" in told
    assert "Stay on JetPack 6 if you need DLA." in told
    assert "unverified: no source at hand; it gives the printed TOPS" in told
    for name in NAMES:
        assert main(["targets", name]) == 0


def test_the_commands_mistakes_exit_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["targets", "orin"]) == 2
    assert "unknown, there are: a100" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert main(["targets", "l4"]) == 2
    assert "pip install pyyaml" in capsys.readouterr().err
