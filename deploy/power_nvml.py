"""The power of an NVIDIA card, by NVML. It is not asked on a Jetson, where it answers `Not Supported`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from deploy.errors import LabError
from deploy.power import PowerMeter, PowerSample
from deploy.system_files import folders

# The driver renews both readings about ten times a second (on some cards more often).
_HERTZ = 10.0
_LEAST_S = 0.1


class NvmlMeter:
    """The whole card, memory and regulators included. See :class:`deploy.power.PowerMeter`.

    From the card's counter of energy where it has one (Volta and later), for its reading of power is the mean
    of a whole second on many cards.
    """

    source = "nvml"
    hertz = _HERTZ

    def __init__(self, nvml: ModuleType, index: int | str) -> None:
        self._nvml: Any = nvml
        self._handle = gpu_handle(nvml, index)
        name = nvml.nvmlDeviceGetName(self._handle)
        self.rail = f"{name.decode() if isinstance(name, bytes) else name} (GPU {index})"
        self.rails = (self.rail,)
        joules = self._joules()
        self._counts = joules is not None
        if not self._counts:
            self._power()
        self._last = (time.monotonic(), joules or 0.0)

    def read(self) -> PowerSample:
        if not self._counts:
            return PowerSample(time.monotonic(), {self.rail: self._power()})
        before, joules = self._last
        time.sleep(max(0.0, before + _LEAST_S - time.monotonic()))
        now, total = time.monotonic(), self._joules()
        if total is None:
            raise LabError(f"power: {self.rail} no longer tells its energy; is the driver still there?")
        self._last = (now, total)
        return PowerSample((before + now) / 2, {self.rail: (total - joules) / (now - before)})

    def __enter__(self) -> NvmlMeter:
        self._last = (time.monotonic(), self._joules() or 0.0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nvml.nvmlShutdown()

    def _joules(self) -> float | None:
        """Since the driver was loaded; None where the card does not count them."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError:
            return None

    def _power(self) -> float:
        try:
            return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise LabError(
                f"power: {self.rail} tells neither power nor energy ({error}); measure at the plug"
            ) from error


def find_nvml(root: Path) -> PowerMeter | None:
    """Of the card that CUDA takes; None without an NVIDIA driver.

    Raises LabError for pynvml missing, and where the driver does not answer.
    """
    if not has_card(root):
        return None
    nvml = open_nvml()
    try:
        return NvmlMeter(nvml, cuda_index())
    except nvml.NVMLError as error:
        raise LabError(
            f"power: NVML finds no GPU {cuda_index()} ({error}); set CUDA_VISIBLE_DEVICES to one of those "
            "that nvidia-smi -L lists"
        ) from error


def has_card(root: Path = Path("/")) -> bool:
    """Whether a driver of NVIDIA's runs a card here."""
    return any(folders(root, "proc/driver/nvidia/gpus/*"))


def open_nvml() -> ModuleType:
    """The module pynvml, initialised; whoever asks calls nvmlShutdown. Raises LabError."""
    try:
        import pynvml
    except ImportError as error:
        raise LabError(
            "an NVIDIA card is asked by NVML, whose module is missing: pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise LabError(
            f"NVML cannot start ({error}); the driver's library libnvidia-ml.so.1 must be there and fit the "
            "loaded driver: restart after an update, and give a container the driver's utilities"
        ) from error
    module: ModuleType = pynvml
    return module


def cuda_index() -> int | str:
    """The first of CUDA_VISIBLE_DEVICES, a number or a UUID; 0 where it is not set."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return int(first) if first.isdigit() else first or 0


def gpu_handle(nvml: Any, index: int | str) -> Any:
    """Raises NVMLError where there is no such card."""
    if isinstance(index, int):
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(index)
