"""Parts of a system's files, for trees of devices that are not at hand: see `tests/device_trees.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Files = dict[str, str]
"""Text by path; what begins with `#!` becomes a program."""


def write_tree(root: Path, files: Files) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if text.startswith("#!"):
            path.chmod(0o755)
    return root


def tegrastats(*lines: str, forever: bool = True) -> str:
    """A program that prints these lines over and over, or once, without asking a device."""
    printed = "".join(f"echo '{line}'\n" for line in lines)
    return (
        f"#!/bin/sh\nwhile :; do\n{printed}sleep 0.01\ndone\n" if forever else f"#!/bin/sh\n{printed}exit 3\n"
    )


def module(model: str, *compatible: str) -> Files:
    return {
        "proc/device-tree/model": model + "\0",
        "proc/device-tree/compatible": "\0".join(compatible) + "\0",
    }


def release(release: str, revision: str) -> Files:
    line = f"# {release} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    return {"etc/nv_tegra_release": line}


def dpkg(*packages: tuple[str, str]) -> Files:
    entries = [
        f"Package: {n}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {v}\n"
        for n, v in packages
    ]
    return {"var/lib/dpkg/status": "\n".join(entries)}


def tensorrt(python: str, version: str) -> Files:
    where = f"usr/lib/python{python}/dist-packages"
    return {f"{where}/tensorrt/__init__.py": "", f"{where}/tensorrt-{version}.dist-info/METADATA": ""}


def cuda(version: str) -> Files:
    major = version.partition(".")[0]
    return {
        "usr/local/cuda/version.json": f'{{"cuda": {{"name": "CUDA SDK", "version": "{version}"}}}}\n',
        f"usr/local/cuda/lib64/libcudart.so.{major}": "",
    }


def nvpmodel(current: int, names: Sequence[str] | dict[int, str], conf_default: int = 0) -> Files:
    numbered = names if isinstance(names, dict) else dict(enumerate(names))
    modes = "".join(
        f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\nGPU MIN_FREQ 0\n\n"
        for n, name in numbered.items()
    )
    default = f"< PM_CONFIG DEFAULT={conf_default} >\n"
    return {
        "etc/nvpmodel.conf": f"< PARAM TYPE=FILE NAME=CPU_ONLINE >\n{modes}{default}",
        "var/lib/nvpmodel/status": f"pmode:{current:04} fmode:quiet\n",
    }


def memory(total_kb: int, available_kb: int, swap_kb: int = 0) -> Files:
    lines = (
        ("MemTotal", total_kb),
        ("MemAvailable", available_kb),
        ("SwapTotal", swap_kb),
        ("SwapFree", swap_kb),
    )
    return {"proc/meminfo": "".join(f"{name}:{value:>15} kB\n" for name, value in lines)}


def cpus(count: int, now_khz: int, least_khz: int, most_khz: int) -> Files:
    values = {"scaling_cur_freq": now_khz, "scaling_min_freq": least_khz, "scaling_max_freq": most_khz}
    return {
        f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}": f"{khz}\n"
        for core in range(count)
        for name, khz in values.items()
    }


def devfreq(name: str, now: int, least: int, most: int) -> Files:
    values = {"cur_freq": now, "min_freq": least, "max_freq": most}
    return {f"sys/class/devfreq/{name}/{key}": f"{hertz}\n" for key, hertz in values.items()}


def bpmp(name: str, hertz: int) -> Files:
    folder = f"sys/kernel/debug/bpmp/debug/clk/{name}"
    return {f"{folder}/{key}": f"{hertz}\n" for key in ("rate", "min_rate", "max_rate")}


def ina3221(number: int, labels: Sequence[str], readings: Sequence[tuple[int, int]]) -> Files:
    """readings: mV and mA. Channels 4 to 7 are shunt voltages and their sum, no rails."""
    chip = f"sys/class/hwmon/hwmon{number}"
    files = {f"{chip}/name": "ina3221\n", f"{chip}/update_interval": "2\n"}
    for channel, (label, (millivolts, milliamps)) in enumerate(zip(labels, readings, strict=True), start=1):
        files[f"{chip}/in{channel}_label"] = f"{label}\n"
        files[f"{chip}/in{channel}_input"] = f"{millivolts}\n"
        files[f"{chip}/curr{channel}_input"] = f"{milliamps}\n"
        files[f"{chip}/in{channel + 3}_input"] = "4560\n"
    return files | {f"{chip}/in7_label": "sum of shunt voltages\n", f"{chip}/in7_input": "9000\n"}


def over_current(number: int, counts: Sequence[int]) -> Files:
    chip = f"sys/class/hwmon/hwmon{number}"
    files = {f"{chip}/name": "soctherm_oc\n"}
    for channel, count in enumerate(counts, start=1):
        files |= {f"{chip}/oc{channel}_event_cnt": f"{count}\n", f"{chip}/oc{channel}_throt_en": "1\n"}
    return files


def zones(millidegrees: dict[str, int]) -> Files:
    files: Files = {}
    for number, (name, value) in enumerate(millidegrees.items()):
        folder = f"sys/class/thermal/thermal_zone{number}"
        files |= {f"{folder}/type": f"{name}\n", f"{folder}/temp": f"{value}\n"}
    return files


def cooling(states: dict[str, int]) -> Files:
    files: Files = {}
    for number, (kind, state) in enumerate(states.items()):
        folder = f"sys/class/thermal/cooling_device{number}"
        files |= {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{state}\n"}
    return files


def programs(*names: str) -> Files:
    return {f"usr/bin/{name}": "#!/bin/sh\n" for name in names}
