"""Power meters: which one a machine has, and the watts that its files stand for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.errors import LabError
from deploy.power_meters import find_meter
from tests.device_trees import agx_orin, agx_xavier, jetson_nano, orin_nano, thor, xavier_nx
from tests.fake_nvml import FakeNvml
from tests.machine_trees import RAPL_RANGE_UJ, bare_vm, rapl, workstation
from tests.system_tree import Files, write_tree


@pytest.mark.parametrize(
    ("files", "source", "rail", "watts"),
    [
        (jetson_nano(), "ina3221", "POM_5V_IN", 1.750),
        (xavier_nx(), "ina3221", "VDD_IN", 4.984 * 0.928),
        (orin_nano(), "ina3221", "VDD_IN", 4.984 * 0.914),
        (thor(), "ina238", "VIN", 15.004),
        (agx_xavier(), "ina3221", "GPU+CPU+SOC+CV+VDDRQ+SYS5V", 19.064 * 1.723),
        # The memory's rail is fed from VIN_SYS_5V0 and would count twice.
        (agx_orin(), "ina3221", "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", 20 * 0.12 + 20 * 0.02 + 4.968 * 0.812),
    ],
    ids=["nano", "xavier nx", "orin nano", "thor", "agx xavier", "agx orin"],
)  # fmt: skip
def test_a_jetson_tells_the_whole_module(
    tmp_path: Path, files: Files, source: str, rail: str, watts: float
) -> None:
    with find_meter(write_tree(tmp_path, files)) as meter:
        sample = meter.read()
    assert (meter.source, meter.rail) == (source, rail)
    assert sample.watts[rail] == pytest.approx(watts)
    assert set(sample.watts) == set(meter.rails)
    assert 0 < meter.hertz <= 20


def test_every_rail_of_a_jetson_is_told_beside_the_whole(tmp_path: Path) -> None:
    with find_meter(write_tree(tmp_path, thor())) as meter:
        watts = meter.read().watts
    assert watts == pytest.approx(
        {"VIN": 15.004, "VDD_GPU": -0.38, "VDD_CPU_SOC_MSS": 3.92, "VIN_SYS_5V0": 4.935}
    )
    with find_meter(write_tree(tmp_path / "orin", agx_orin())) as meter:
        assert "VDDQ_VDD2_1V8AO" in meter.rails
        assert not {"NC", "sum of shunt voltages"} & set(meter.rails)


def test_thor_on_a_board_without_its_input_monitor_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    files = {name: text for name, text in thor().items() if "hwmon6" not in name}
    with find_meter(write_tree(tmp_path, files)) as meter:
        assert meter.rail == "VDD_GPU+VDD_CPU_SOC_MSS+VIN_SYS_5V0"
        assert meter.read().watts[meter.rail] == pytest.approx(-0.38 + 3.92 + 4.935)


def test_a_slow_chip_is_not_asked_more_often_than_it_converts(tmp_path: Path) -> None:
    files = orin_nano() | {"sys/class/hwmon/hwmon1/update_interval": "250\n"}
    with find_meter(write_tree(tmp_path, files)) as meter:
        assert meter.hertz == 4


def test_a_rail_that_vanishes_is_an_error(tmp_path: Path) -> None:
    with find_meter(write_tree(tmp_path, orin_nano())) as meter:
        meter.read()
        (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
        with pytest.raises(LabError, match="VDD_IN of the ina3221 cannot be read"):
            meter.read()


def test_a_channel_that_is_switched_off_is_no_rail(tmp_path: Path) -> None:
    """The driver answers ENODATA for in2_enable 0; here the file holds nothing."""
    files = orin_nano() | {"sys/class/hwmon/hwmon1/curr2_input": ""}
    with find_meter(write_tree(tmp_path, files)) as meter:
        assert meter.rails == ("VDD_IN", "VDD_SOC")


def test_rapl_gives_the_mean_since_the_last_reading(tmp_path: Path) -> None:
    files = {name: text for name, text in workstation().items() if "nvidia" not in name}
    write_tree(tmp_path, files)
    with find_meter(tmp_path) as meter:
        assert (meter.source, meter.rail) == ("rapl", "package-0")
        assert meter.rails == ("package-0", "package-0/core")
        write_tree(tmp_path, rapl("intel-rapl:0", "package-0", 5_000_000 + 900_000))
        write_tree(tmp_path, rapl("intel-rapl:0:0", "core", 3_000_000 + 300_000))
        first = meter.read()
        second = meter.read()
    assert first.watts["package-0"] / first.watts["package-0/core"] == pytest.approx(3)
    # 0.9 J in a time that lies between the shortest that a reading takes and the test's own.
    assert 0 < first.watts["package-0"] <= 0.9 / 0.02
    assert second.watts["package-0"] == 0
    assert second.seconds > first.seconds


def test_rapl_begins_again_at_zero(tmp_path: Path) -> None:
    """The part counts as much as its package meanwhile, and does not begin again."""
    write_tree(tmp_path, rapl("intel-rapl:0", "package-0", RAPL_RANGE_UJ - 99_999))
    write_tree(tmp_path, rapl("intel-rapl:0:0", "core", 0))
    with find_meter(tmp_path, "cpu") as meter:
        write_tree(tmp_path, rapl("intel-rapl:0", "package-0", 200_000))
        write_tree(tmp_path, rapl("intel-rapl:0:0", "core", 300_000))
        watts = meter.read().watts
    assert watts["package-0"] == watts["package-0/core"] > 0


def test_two_packages_are_one_rail(tmp_path: Path) -> None:
    for number in (0, 1):
        write_tree(tmp_path, rapl(f"intel-rapl:{number}", f"package-{number}", 1000))
    write_tree(tmp_path, rapl("intel-rapl:2", "psys", 1000))
    with find_meter(tmp_path) as meter:
        assert meter.rail == "package-0+package-1"
        for number in (0, 1):
            write_tree(tmp_path, rapl(f"intel-rapl:{number}", f"package-{number}", 51000))
        watts = meter.read().watts
    assert watts[meter.rail] == pytest.approx(watts["package-0"] + watts["package-1"]) != 0
    assert watts["psys"] == 0


def test_rapl_for_root_only_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no file mode keeps out: the refusal itself is put in its place."""
    write_tree(tmp_path, rapl("intel-rapl:0", "package-0", 1))
    plain = Path.read_text

    def refuse(path: Path, *args: str, **kwargs: str) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(LabError, match=r"root only.*sudo chmod a\+r"):
        find_meter(tmp_path)


def test_a_card_counts_for_the_gpu_and_rapl_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tree(tmp_path, workstation())
    nvml = FakeNvml(energy_mj=[1000, 1000, 4000])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert find_meter(tmp_path, "cpu").source == "rapl"
    with find_meter(tmp_path, "gpu") as meter:
        sample = meter.read()
        assert (meter.source, meter.rail) == ("nvml", "NVIDIA L4 (GPU 0)")
        assert 0 < sample.watts[meter.rail] <= 3 / 0.1
    assert nvml.open == 0
    assert find_meter(tmp_path).source == "nvml"


def test_an_old_card_tells_its_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(power_mw=43_210))
    with find_meter(write_tree(tmp_path, workstation()), "gpu") as meter:
        assert meter.read().watts == {meter.rail: 43.21}


def test_a_card_that_tells_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    with pytest.raises(LabError, match="neither power nor energy"):
        find_meter(write_tree(tmp_path, workstation()), "gpu")


def test_a_card_without_the_module_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(LabError, match="pip install nvidia-ml-py"):
        find_meter(write_tree(tmp_path, workstation()), "gpu")


def test_a_card_that_cuda_is_told_to_take_and_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(power_mw=1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    with pytest.raises(LabError, match="no GPU 3"):
        find_meter(write_tree(tmp_path, workstation()), "gpu")


def test_a_virtual_machine_is_told_why_it_has_none(tmp_path: Path) -> None:
    write_tree(tmp_path, bare_vm())
    with pytest.raises(LabError, match=r"nothing here measures it.*virtual machine"):
        find_meter(tmp_path)
    with pytest.raises(LabError, match="no NVIDIA driver here"):
        find_meter(tmp_path, "gpu")
    with pytest.raises(LabError, match="nothing here measures the CPU's, no RAPL"):
        find_meter(tmp_path, "cpu")


def test_a_jetson_in_a_container_without_sys_is_told_so(tmp_path: Path) -> None:
    files = {name: text for name, text in orin_nano().items() if "hwmon" not in name}
    with pytest.raises(LabError, match="mount /sys"):
        find_meter(write_tree(tmp_path, files))


def test_rails_that_nobody_knows_are_added_up(tmp_path: Path) -> None:
    files = {
        name: text.replace("VDD_IN", "VDD_NEW") if name.endswith("_label") else text
        for name, text in orin_nano().items()
    }
    with find_meter(write_tree(tmp_path, files)) as meter:
        assert meter.rail == "VDD_NEW+VDD_CPU_GPU_CV+VDD_SOC"
        watts = meter.read().watts
    assert watts[meter.rail] == pytest.approx(4.984 * (0.914 + 0.100 + 0.258))
