"""Clocks of a device: what they are now and between what they may move.

CPU cores by cpufreq; a Jetson's GPU by devfreq (17000000.gpu and 17000000.ga10b on Orin, 17000000.gv11b on
Xavier, 57000000.gpu on Nano, gpu-gpc-0 on Thor); memory (EMC) and DLA by what the SoC's power controller BPMP
shows to root under /sys/kernel/debug (developer guide of Jetson Linux, platform power and performance).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deploy.system_files import folders, read_int

_GPU = re.compile(r"\d+\.(gpu|ga10b|gv11b|gp10b)|gpu-gpc-0")
_BPMP = "sys/kernel/debug/bpmp/debug/clk"
_OF_BPMP = {"emc": "emc", "dla0": "nafll_dla0_core", "dla1": "nafll_dla1_core"}
_LOCKED = 0.999


@dataclass(frozen=True)
class Clock:
    """In MHz; least and most are what it may be set to in the present power mode, None where not told."""

    mhz: float
    least: float | None
    most: float | None

    @property
    def locked(self) -> bool | None:
        """Whether it is held at one value, as jetson_clocks does; None where that cannot be told."""
        return None if self.least is None or self.most is None else self.least >= _LOCKED * self.most


def read_clocks(root: Path = Path("/")) -> dict[str, Clock]:
    """By name: cpu0, cpu1, ..., gpu, emc, dla0, dla1, as far as the system says."""
    found: dict[str, Clock] = {}
    cores = folders(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    for folder in sorted(cores, key=lambda folder: int(folder.parent.name[3:])):
        names = ("scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")
        _add(found, folder.parent.name, [folder / name for name in names], 1e3)  # kHz
    for folder in folders(root, "sys/class/devfreq/*"):
        if _GPU.fullmatch(folder.name):
            _add(found, "gpu", [folder / name for name in ("cur_freq", "min_freq", "max_freq")], 1e6)
    for name, clock in _OF_BPMP.items():
        folder = root / _BPMP / clock
        _add(found, name, [folder / "rate", folder / "min_rate", folder / "max_rate"], 1e6)
    return found


def _add(found: dict[str, Clock], name: str, paths: list[Path], per_mhz: float) -> None:
    now, least, most = (None if (value := read_int(path)) is None else value / per_mhz for path in paths)
    if now is not None:
        found[name] = Clock(now, least, most)
