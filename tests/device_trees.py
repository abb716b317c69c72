"""The system's files of devices that are not at hand, as folder trees: what meters and the doctor read.

Not recorded here. Paths, names and units are documented: the Jetson Linux Developer Guide (r32.7, r35.6,
r36.4, r38.2, r39.2: platform power and performance, nvpmodel, tegrastats), the kernel's documentation of
hwmon (ina3221, ina238), thermal (sysfs-api), cpufreq, devfreq, power capping (powercap) and the device
tree's bindings of Tegra. Figures are of the size that owners publish. `tests/machine_trees.py` has the
machines that are no Jetson.
"""

from __future__ import annotations

from tests.system_tree import (
    Files,
    bpmp,
    cooling,
    cpus,
    cuda,
    devfreq,
    dpkg,
    ina3221,
    memory,
    module,
    nvpmodel,
    over_current,
    programs,
    release,
    tegrastats,
    tensorrt,
    zones,
)
from tests.tegrastats_lines import NANO


def jetson_nano() -> Files:
    """JetPack 4.6.1 (L4T 32.7.1): kernel 4.9, the INA3221 as an IIO device, nvpmodel MAXN."""
    chip = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    return (
        module(
            "NVIDIA Jetson Nano Developer Kit",
            "nvidia,p3449-0000-a02",
            "nvidia,jetson-nano",
            "nvidia,tegra210",
        )
        | release("R32", "7.1")
        | dpkg(("nvidia-l4t-core", "32.7.1-20220219090344"), ("nvidia-jetpack", "4.6.1-b110"))
        | nvpmodel(0, ["MAXN", "5W"])
        | memory(4059712, 1400000)
        | cpus(4, 1479000, 102000, 1479000)
        | devfreq("57000000.gpu", 921600000, 76800000, 921600000)
        | {
            f"{chip}/rail_name_{n}": f"{rail}\n"
            for n, rail in enumerate(("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"))
        }
        | {f"{chip}/in_power{n}_input": f"{mw}\n" for n, mw in enumerate((1750, 0, 366))}
        | zones({"AO-therm": 45000, "CPU-therm": 40000, "GPU-therm": 40000, "PMIC-Die": 50000})
        | {"usr/bin/tegrastats": tegrastats(NANO)}
    )


def xavier_nx() -> Files:
    """JetPack 5.1.2 (L4T 35.4.1)."""
    return (
        module("NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3509-0000+p3668-0000", "nvidia,tegra194")
        | release("R35", "4.1")
        | dpkg(("nvidia-l4t-core", "35.4.1-20230801124926"), ("nvidia-jetpack", "5.1.2-b104"))
        | nvpmodel(8, {2: "MODE_15W_6CORE", 8: "MODE_20W_6CORE"})
        | memory(7131632, 5000000)
        | cpus(6, 1420800, 1190400, 1420800)
        | devfreq("17000000.gv11b", 1109250000, 114750000, 1109250000)
        | ina3221(3, ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], [(4984, 928), (4984, 192), (4984, 176)])
        | zones({"CPU-therm": 41000, "GPU-therm": 39500, "AUX-therm": 40500})
    )


def agx_xavier() -> Files:
    """JetPack 5.1.2: two chips, no rail of the whole module."""
    return (
        module("NVIDIA Jetson AGX Xavier Developer Kit", "nvidia,p2972-0000", "nvidia,tegra194")
        | release("R35", "4.1")
        | nvpmodel(0, ["MAXN", "MODE_10W"])
        | memory(31746000, 29000000)
        | cpus(8, 2265600, 1190400, 2265600)
        | devfreq("17000000.gv11b", 1377000000, 114750000, 1377000000)
        | ina3221(3, ["GPU", "CPU", "SOC"], [(19064, 965), (19064, 121), (19064, 241)])
        | ina3221(4, ["CV", "VDDRQ", "SYS5V"], [(19064, 0), (19064, 153), (19064, 243)])
    )


def orin_nano() -> Files:
    """Super developer kit, JetPack 6.2 (L4T 36.4.3): mode 15W, clocks not locked, one USB camera."""
    return (
        module(
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234",
        )
        | release("R36", "4.3")
        | dpkg(("nvidia-l4t-core", "36.4.3-20250107174145"), ("nvidia-jetpack", "6.2+b77"),
                ("libnvinfer10", "10.3.0.30-1+cuda12.5"), ("python3-libnvinfer", "10.3.0.30-1+cuda12.5"))
        | tensorrt("3.10", "10.3.0")
        | cuda("12.6.68")
        | nvpmodel(0, ["15W", "25W", "MAXN_SUPER", "7W"], conf_default=1)
        | memory(7802624, 5600000, swap_kb=3901312)
        | cpus(6, 729600, 729600, 1510400)
        | devfreq("17000000.gpu", 306000000, 306000000, 624750000)
        | ina3221(1, ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], [(4984, 914), (4984, 100), (4984, 258)])
        | over_current(2, (0, 0, 0))
        | zones({"cpu-thermal": 45500, "gpu-thermal": 44200, "soc0-thermal": 44500, "tj-thermal": 45500})
        | cooling({"cpu-throttle-alert": 0, "gpu-throttle-alert": 0, "devfreq-17000000.gpu": 0, "pwm-fan": 2})
        | {"sys/class/video4linux/video0/name": "HD Pro Webcam C920\n", "dev/video0": ""}
        | programs("nvargus-daemon", "gst-launch-1.0")
    )  # fmt: skip


def agx_orin(jetpack: str = "6.2") -> Files:
    """64GB developer kit, JetPack 6.2 or 7.2.2: two chips, MAXN, clocks locked, seen by root (EMC, DLA)."""
    revision, core, python, engine, toolkit = {
        "6.2": ("4.3", "36.4.3-20250107174145", "3.10", "10.3.0", "12.6.68"),
        "7.2.2": ("2.2", "39.2.2-20260801120000", "3.12", "11.4.1", "13.2.1"),
    }[jetpack]
    return (
        module(
            "NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005",
            "nvidia,tegra234",
        )
        | release("R" + core[:2], revision)
        | dpkg(("nvidia-l4t-core", core), ("nvidia-jetpack", f"{jetpack}+b77"))
        | tensorrt(python, engine)
        | cuda(toolkit)
        | nvpmodel(0, ["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"])
        | memory(64325000, 60000000, swap_kb=32162500)
        | cpus(12, 2201600, 2201600, 2201600)
        | devfreq("17000000.gpu", 1300500000, 1300500000, 1300500000)
        | bpmp("emc", 3199000000) | bpmp("nafll_dla0_core", 1600000000) | bpmp("nafll_dla1_core", 1600000000)
        | ina3221(3, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], [(20000, 120), (20000, 20), (4968, 812)])
        | ina3221(4, ["NC", "VDDQ_VDD2_1V8AO", "NC"], [(0, 0), (4968, 60), (0, 0)])
        | over_current(5, (0, 0, 3))
        | zones({"cpu-thermal": 52562, "gpu-thermal": -256000, "tj-thermal": 52562})
        | cooling({"cpu-throttle-alert": 0, "pwm-fan": 1})
    )  # fmt: skip


def thor() -> Files:
    """Developer kit, JetPack 7.0 (L4T 38.2): an INA238 at the power input, an INA3221 on the module."""
    return (
        module(
            "NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008",
            "nvidia,tegra264",
        )
        | release("R38", "2.0")
        | dpkg(("nvidia-l4t-core", "38.2.0-20250821174705"), ("nvidia-jetpack", "7.0-b128"))
        | tensorrt("3.12", "10.13.3")
        | cuda("13.0.48")
        | nvpmodel(0, ["MAXN", "120W"])
        | memory(128790000, 120000000)
        | cpus(14, 972000, 972000, 2601000)
        | devfreq("gpu-gpc-0", 315000000, 315000000, 1575000000)
        | devfreq("gpu-nvd-0", 315000000, 315000000, 1692000000)
        | ina3221(5, ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], [(20000, -19), (20000, 196), (5000, 987)])
        | {"sys/class/hwmon/hwmon6/name": "ina238\n", "sys/class/hwmon/hwmon6/label": "VIN\n",
           "sys/class/hwmon/hwmon6/power1_input": "15004000\n"}
        | over_current(4, (0, 0, 179))
        | zones({"cpu-thermal": 37343, "tj-thermal": 38875, "soc012-thermal": 37468})
        | cooling({"gpu-throttle-alert": 1, "devfreq-gpu-gpc-0": 18, "cpufreq-cpu0": 0, "pwm-fan": 3})
    )  # fmt: skip
