"""Where a measurement was taken: the facts that change its meaning, and nothing that names a person."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from deploy.system_files import read_text

# Instructions that multiply 8-bit integers and add into 32 bits: with them INT8 is both fast and exact.
_DOT_PRODUCT_FLAGS = {"avx512_vnni", "avx_vnni", "asimddp"}


def usable_cores() -> int:
    """Logical cores this process may run on: its affinity where the system has one, else all of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_int8_dot_product(root: Path = Path("/")) -> bool | None:
    """Whether the CPU has VNNI (x86) or dotprod (ARM); None where the system does not say."""
    facts = cpu_facts(root)
    flags = facts.get("flags") or facts.get("Features")
    return None if flags is None else not _DOT_PRODUCT_FLAGS.isdisjoint(flags.split())


def describe_machine() -> dict[str, Any]:
    """CPU, memory, system, clocks and versions in plain JSON types; None where the system does not say.

    The host's name is left out on purpose: result files get published.
    """
    facts = cpu_facts()
    return {
        "device": read_text(Path("/proc/device-tree/model")),  # a Jetson names its module and board here
        "cpu": facts.get("model name") or platform.processor() or None,
        "architecture": platform.machine(),
        "cores": usable_cores(),
        "int8_dot_product": has_int8_dot_product(),
        "memory_mib": _memory_mib(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "openvino")},
        "governor": read_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "mhz": _mhz(facts),
    }


def available_memory_bytes() -> int | None:
    """What programs can still take without swapping; None where the system does not say."""
    lines = (read_text(Path("/proc/meminfo")) or "").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None when it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def cpu_facts(root: Path = Path("/")) -> dict[str, str]:
    """The first core's block of /proc/cpuinfo, by its own names: `model name`, `flags`."""
    block = (read_text(root / "proc/cpuinfo") or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_mib() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


def _mhz(facts: dict[str, str]) -> float | None:
    khz = read_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    if khz:
        return int(khz) / 1000
    return float(facts["cpu MHz"]) if "cpu MHz" in facts else None
