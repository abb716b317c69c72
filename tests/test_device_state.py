"""The state of a device, and what of it makes a measurement doubtful."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.clocks import read_clocks
from deploy.device_state import DeviceState, changes, read_state
from deploy.nvpmodel import read_modes
from tests.device_trees import agx_orin, agx_xavier, jetson_nano, orin_nano, thor, xavier_nx
from tests.fake_nvml import FakeNvml
from tests.machine_trees import bare_vm, throttle_counts, workstation
from tests.system_tree import Files, cooling, write_tree


@pytest.mark.parametrize(
    ("files", "mhz", "mode"),
    [
        (jetson_nano(), {"cpu3": 1479, "gpu": 921.6}, "MAXN"),
        (xavier_nx(), {"cpu5": 1420.8, "gpu": 1109.25}, "MODE_20W_6CORE"),
        (agx_xavier(), {"cpu7": 2265.6, "gpu": 1377}, "MAXN"),
        (orin_nano(), {"cpu5": 729.6, "gpu": 306}, "15W"),
        (agx_orin(), {"cpu11": 2201.6, "gpu": 1300.5, "emc": 3199, "dla0": 1600, "dla1": 1600}, "MAXN"),
        (thor(), {"cpu13": 972, "gpu": 315}, "MAXN"),
    ],
    ids=["nano", "xavier nx", "agx xavier", "orin nano", "agx orin", "thor"],
)
def test_clocks_and_power_mode_of_each_generation(
    tmp_path: Path, files: Files, mhz: dict[str, float], mode: str
) -> None:
    state = read_state(write_tree(tmp_path, files))
    assert {name: state.mhz[name] for name in mhz} == pytest.approx(mhz)
    assert state.power_mode == mode


def test_what_is_not_told_is_not_there(tmp_path: Path) -> None:
    assert read_state(write_tree(tmp_path, bare_vm())) == DeviceState({}, {}, None, ())
    assert "emc" not in read_state(write_tree(tmp_path / "orin", orin_nano())).mhz


def test_locked_clocks_are_told_from_moving_ones(tmp_path: Path) -> None:
    locked = read_clocks(write_tree(tmp_path / "a", agx_orin()))
    moving = read_clocks(write_tree(tmp_path / "b", orin_nano()))
    assert locked["gpu"].locked is True
    assert locked["cpu0"].locked is True
    assert moving["gpu"].locked is False
    (tmp_path / "b/sys/class/devfreq/17000000.gpu/max_freq").unlink()
    assert read_clocks(tmp_path / "b")["gpu"].locked is None


def test_temperatures_of_parts_that_are_off_are_left_out(tmp_path: Path) -> None:
    state = read_state(write_tree(tmp_path, agx_orin()))
    assert state.celsius == {"cpu": 52.562, "tj": 52.562}
    # A zone that answers with an error, such as EAGAIN of a GPU without power.
    zone = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    zone.unlink()
    zone.mkdir()
    assert read_state(tmp_path).celsius == {"tj": 52.562}


def test_a_fan_is_no_throttling_and_a_cap_is(tmp_path: Path) -> None:
    assert read_state(write_tree(tmp_path / "a", orin_nano())).throttled == ()
    assert read_state(write_tree(tmp_path / "b", thor())).throttled == (
        "devfreq-gpu-gpc-0",
        "gpu-throttle-alert",
    )


@pytest.mark.parametrize(
    ("kind", "holds"),
    [
        ("thermal-cpufreq-0", True), ("thermal-devfreq-1", True), ("cpufreq-cpu4", True),
        ("gpu-balanced", True),
        ("soc345-throttle-alert", True), ("hot-surface-alert", True), ("Processor", True),
        ("pwm-fan", False), ("tegra-fan", False), ("TCC Offset", False), ("Fan", False),
    ],
)  # fmt: skip
def test_which_cooling_devices_hold_back(tmp_path: Path, kind: str, holds: bool) -> None:
    state = read_state(write_tree(tmp_path, cooling({kind: 1, "devfreq-17000000.gpu": 0})))
    assert state.throttled == ((kind,) if holds else ())


def test_events_are_counted_by_their_cause(tmp_path: Path) -> None:
    events = read_state(write_tree(tmp_path / "a", thor())).throttle_events
    assert events == {
        "under-voltage (oc1_event_cnt)": 0,
        "average over-current (oc2_event_cnt)": 0,
        "instantaneous over-current (oc3_event_cnt)": 179,
    }
    x86 = write_tree(tmp_path / "b", bare_vm() | throttle_counts(4, 3))
    assert read_state(x86).throttle_events == {
        "thermal (core_throttle_count)": 12,
        "thermal (package_throttle_count)": 12,
    }


def test_the_same_number_is_another_mode_on_another_module(tmp_path: Path) -> None:
    nano, agx = (
        write_tree(tmp_path / name, files) for name, files in (("a", orin_nano()), ("b", agx_orin()))
    )
    assert (read_modes(nano).current, read_modes(agx).current) == ("15W", "MAXN")
    assert read_modes(nano).number("maxn_super") == 2
    assert read_modes(nano).number("MODE_50W") is None


def test_nvpmodel_itself_is_asked_where_its_status_is_not_there(tmp_path: Path) -> None:
    files = orin_nano() | {"usr/sbin/nvpmodel": "#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n"}
    del files["var/lib/nvpmodel/status"]
    assert read_modes(write_tree(tmp_path, files)).current == "MAXN_SUPER"
    (tmp_path / "usr/sbin/nvpmodel").write_text("#!/bin/sh\necho 'NVPM ERROR: must be root'\nexit 1\n")
    assert read_modes(tmp_path).current is None
    (tmp_path / "usr/sbin/nvpmodel").unlink()
    assert read_modes(tmp_path).current is None


def test_a_card_tells_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(power_mw=1, reasons=1 | 4 | 64)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    state = read_state(write_tree(tmp_path, workstation()))
    assert (state.mhz["gpu"], state.mhz["gpu memory"], state.celsius["gpu"]) == (2040, 6251, 41)
    assert state.throttled == ("the card's power limit", "the card's temperature (hardware)")
    assert nvml.open == 0
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "gpu" not in read_state(tmp_path).mhz


QUIET = DeviceState({"cpu0": 1500, "cpu1": 700, "gpu": 900}, {"tj": 40}, "15W", (), {"thermal": 7})


def test_a_quiet_measurement_has_nothing_to_say() -> None:
    busy = replace(QUIET, mhz={"cpu0": 700, "cpu1": 1490, "gpu": 905}, celsius={"tj": 70})
    assert changes(QUIET, [busy, QUIET], replace(QUIET, celsius={"tj": 60})) == []
    idle = replace(QUIET, mhz={"cpu0": 700, "cpu1": 700, "gpu": 300})
    assert changes(idle, [QUIET, QUIET], idle) == []
    assert changes(QUIET, [], QUIET) == []
    turbo = replace(QUIET, mhz={"cpu0": 4900, "gpu": 900})
    assert changes(turbo, [QUIET, QUIET], turbo) == []


def test_clocks_that_moved() -> None:
    slow = replace(QUIET, mhz={"cpu0": 1000, "cpu1": 900, "gpu": 900})
    (words,) = changes(QUIET, [QUIET, slow], QUIET)
    assert words.startswith("the clock cpu moved between 1000 and 1500 MHz meanwhile;")
    assert "sudo jetson_clocks" in words


def test_a_gpu_that_is_held_back_from_the_first_moment() -> None:
    slow = replace(QUIET, mhz={"gpu": 600})
    (words,) = changes(QUIET, [slow, slow], QUIET)
    assert words == "the clock gpu ran at 600 MHz under load, below the 900 MHz before"


def test_throttling_that_set_in_and_that_was_there() -> None:
    hot = replace(QUIET, throttled=("gpu-throttle-alert",))
    (new,) = changes(QUIET, [QUIET, hot], QUIET)
    assert new.startswith("throttling set in: gpu-throttle-alert;")
    (late,) = changes(QUIET, [], hot)
    assert late.startswith("throttling set in")
    (old,) = changes(hot, [hot], hot)
    assert old.startswith("throttled already before: gpu-throttle-alert;")


def test_throttling_that_was_over_before_anybody_looked() -> None:
    later = replace(QUIET, throttle_events={"thermal": 19, "of a chip that was not there before": 3})
    assert changes(QUIET, [QUIET], later) == [
        "throttled 12 times meanwhile: thermal; cool it better or give it a stronger supply"
    ]


def test_a_mode_that_changed() -> None:
    other = replace(QUIET, power_mode="MAXN_SUPER")
    (words,) = changes(QUIET, [other], other)
    assert words.startswith("the power mode changed meanwhile: 15W, then MAXN_SUPER;")
    (words,) = changes(QUIET, [replace(QUIET, power_mode=None)], QUIET)
    assert "15W, then unknown" in words
