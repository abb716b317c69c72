"""Which power meter this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from deploy.errors import LabError
from deploy.power import PowerMeter
from deploy.power_files import find_rails
from deploy.power_nvml import find_nvml
from deploy.power_rapl import find_rapl
from deploy.system_files import read_text
from deploy.tegrastats import find_tegrastats


def find_meter(root: Path = Path("/"), device: Literal["gpu", "cpu"] | None = None) -> PowerMeter:
    """The meter of what computes; open it with `with`.

    device: on a machine with a GPU on a card of its own, the card ("gpu", by NVML: what TensorRT runs on) or
        the CPU's package ("cpu", by RAPL: what the CPU backends run on); None takes the card where there is
        one. A Jetson has one meter for both: the whole module, by INA3221 or INA238, else by tegrastats.
    root: where the system's files are.

    Raises LabError with the reason and the remedy where nothing measures power.
    """
    if meter := find_rails(root) or find_tegrastats(root):
        return meter
    if is_jetson(root):
        raise LabError(
            "power: this Jetson shows no INA3221 or INA238 under /sys and has no /usr/bin/tegrastats; in a "
            "container: mount /sys and tegrastats into it, else sudo apt install nvidia-l4t-tools"
        )
    if device != "cpu" and (board := find_nvml(root)):
        return board
    if device == "gpu":
        raise LabError(
            "power: no NVIDIA driver here (/proc/driver/nvidia), so no GPU's power can be read; install the "
            "driver, or give the container the GPU"
        )
    if package := find_rapl(root):
        return package
    what = "the CPU's" if device == "cpu" else "it: no INA3221 or INA238, no tegrastats, no NVIDIA driver"
    raise LabError(
        f"power: nothing here measures {what}, no RAPL (/sys/class/powercap); a virtual machine and most "
        "containers hide RAPL: measure on the machine itself, or with a meter at its plug"
    )


def is_jetson(root: Path = Path("/")) -> bool:
    """By the SoC that the device tree names."""
    return "nvidia,tegra" in (read_text(root / "proc/device-tree/compatible") or "")
