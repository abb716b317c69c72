"""Stands in for `pynvml` and a card: no NVIDIA card is at hand.

Functions, units and errors are those of NVIDIA's NVML API reference (energy: mJ, power: mW, clocks: MHz).
"""

from __future__ import annotations

from typing import Any


class NVMLError(Exception):
    pass


class FakeNvml:
    """energy_mj: what the counter says from call to call; empty for a card without one."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(
        self,
        energy_mj: list[int] | None = None,
        power_mw: int | None = None,
        reasons: int = 1,
        cards: int = 1,
    ) -> None:
        self._energy_mj, self._power_mw = energy_mj or [], power_mw
        self._reasons, self._cards = reasons, cards
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802  # their name
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlClocksThrottleReasonSwPowerCap": 4,
            "nvmlClocksThrottleReasonHwSlowdown": 8,
            "nvmlClocksThrottleReasonSwThermalSlowdown": 32,
            "nvmlClocksThrottleReasonHwThermalSlowdown": 64,
            "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": 128,
            "nvmlDeviceGetHandleByIndex": self._card,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetName": lambda handle: "NVIDIA L4",
            "nvmlDeviceGetTotalEnergyConsumption": self._energy,
            "nvmlDeviceGetPowerUsage": lambda handle: self._known(self._power_mw),
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: self._reasons,
            "nvmlDeviceGetClockInfo": lambda handle, kind: {1: 2040, 2: 6251}[kind],
            "nvmlDeviceGetTemperature": lambda handle, sensor: 41,
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]

    def _card(self, index: int) -> int:
        if index >= self._cards:
            raise NVMLError("Invalid Argument")
        return index

    def _energy(self, handle: Any) -> int:
        if len(self._energy_mj) > 1:
            return self._energy_mj.pop(0)
        return self._known(self._energy_mj[0] if self._energy_mj else None)

    def _known(self, value: int | None) -> int:
        if value is None:
            raise NVMLError("Not Supported")
        return value
