"""The system's files of machines that are no Jetson, as folder trees: see `tests/device_trees.py`.

Not recorded here, but for the virtual machine. Documented: the kernel's documentation of power capping
(powercap), cpufreq and thermal (sysfs-api), its source for thermal_throttle, and NVIDIA's README of the
driver for /proc/driver/nvidia.
"""

from __future__ import annotations

from tests.system_tree import Files, cooling, cpus, cuda, memory, programs, zones

RAPL_RANGE_UJ = 262143328850


def workstation() -> Files:
    """An Intel desktop with one card: RAPL package and core, NVIDIA's driver, a governor that saves power."""
    return (
        cpuinfo("12th Gen Intel(R) Core(TM) i7-12700K", "fpu avx2 avx_vnni")
        | memory(32734512, 24000000, swap_kb=2097148)
        | cpus(2, 4900000, 800000, 4900000)
        | {f"sys/devices/system/cpu/cpu{n}/cpufreq/scaling_governor": "powersave\n" for n in (0, 1)}
        | rapl("intel-rapl:0", "package-0", 5_000_000)
        | rapl("intel-rapl:0:0", "core", 3_000_000)
        | card("NVIDIA L4")
        | cuda("12.8.1")
        | zones({"x86_pkg_temp": 45000, "acpitz": 27800})
        | cooling({"Processor": 0, "intel_powerclamp": -1, "TCC Offset": 5})
        | throttle_counts(2, 0)
        | programs("ffmpeg")
    )


def bare_vm() -> Files:
    """What the machine that these tests were written on shows of itself: next to nothing."""
    return cpuinfo("Intel(R) Xeon(R) Processor", "fpu avx2 avx512_vnni amx_int8") | memory(24731708, 20160820)


def cpuinfo(model: str, flags: str) -> Files:
    return {"proc/cpuinfo": f"processor\t: 0\nmodel name\t: {model}\nflags\t\t: {flags}\n\n"}


def rapl(zone: str, name: str, microjoules: int) -> Files:
    folder = f"sys/class/powercap/{zone}"
    values = {"name": name, "energy_uj": microjoules, "max_energy_range_uj": RAPL_RANGE_UJ}
    return {f"{folder}/{key}": f"{value}\n" for key, value in values.items()}


def card(model: str) -> Files:
    version = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Fri Jan 10 07:41:43 UTC 2025\n"
    return {
        "proc/driver/nvidia/version": version,
        "proc/driver/nvidia/gpus/0000:01:00.0/information": f"Model: \t\t {model}\nIRQ:   \t\t 168\n",
    }


def throttle_counts(cores: int, count: int) -> Files:
    return {
        f"sys/devices/system/cpu/cpu{core}/thermal_throttle/{kind}_throttle_count": f"{count}\n"
        for core in range(cores)
        for kind in ("core", "package")
    }
