"""In what state the device is: clocks, temperatures, power mode, throttling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceState:
    """What the system says at one moment; empty or None where it does not.

    mhz: clocks by name (`cpu0`, `gpu`, `emc`, `dla0`). celsius: thermal zones by name. power_mode: by name
    (nvpmodel's). throttled: what holds the clocks back, in the system's words.
    """

    mhz: Mapping[str, float]
    celsius: Mapping[str, float]
    power_mode: str | None
    throttled: tuple[str, ...]
