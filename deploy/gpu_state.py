"""The state of an NVIDIA card on a machine that has one: clocks, temperature, what holds the clocks back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import LabError
from deploy.power_nvml import cuda_index, gpu_handle, has_card, open_nvml

_REASONS = {
    "SwPowerCap": "the card's power limit",
    "HwSlowdown": "the card's hardware slowdown",
    "SwThermalSlowdown": "the card's temperature (driver)",
    "HwThermalSlowdown": "the card's temperature (hardware)",
    "HwPowerBrakeSlowdown": "the power brake of the card's slot",
}
"""Of NVML's clocks event reasons those that slow a busy card down."""


@dataclass(frozen=True)
class CardState:
    """As in :class:`deploy.device_state.DeviceState`."""

    mhz: Mapping[str, float]
    celsius: Mapping[str, float]
    throttled: tuple[str, ...]


def read_gpu(root: Path = Path("/")) -> CardState:
    """Of the card that CUDA takes; empty without one, and where NVML or its module is not there."""
    nothing = CardState({}, {}, ())
    if not has_card(root):
        return nothing
    try:
        nvml: Any = open_nvml()
    except LabError:
        return nothing
    try:
        return _read(nvml, gpu_handle(nvml, cuda_index()))
    except nvml.NVMLError:
        return nothing
    finally:
        nvml.nvmlShutdown()


def _read(nvml: Any, handle: Any) -> CardState:
    clocks = {"gpu": nvml.NVML_CLOCK_SM, "gpu memory": nvml.NVML_CLOCK_MEM}
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    return CardState(
        mhz={name: float(nvml.nvmlDeviceGetClockInfo(handle, kind)) for name, kind in clocks.items()},
        celsius={"gpu": float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))},
        throttled=tuple(
            words
            for name, words in _REASONS.items()
            if reasons & getattr(nvml, f"nvmlClocksThrottleReason{name}")
        ),
    )
