"""The power monitors of a Jetson, by the files of their drivers.

INA3221, three rails a chip: in{1,2,3}_label, in{1,2,3}_input (mV), curr{1,2,3}_input (mA); in4 to in7 are
shunt voltages and a sum of them (kernel documentation, hwmon/ina3221.rst). JetPack 4 has the same chip as an
IIO device: rail_name_{0,1,2}, in_power{0,1,2}_input (mW). INA238, one rail: power1_input (uW,
hwmon/ina238.rst).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from deploy.errors import LabError
from deploy.power import PowerMeter, PowerSample
from deploy.power_rails import telling_rail
from deploy.system_files import folders, read_int, read_text

# A read of eight values is as many transfers on a slow bus, some milliseconds of a core: more often than this
# the meter would show up in what it measures.
_MOST_HERTZ = 20.0
_USUAL_HERTZ = 10.0
_UNCONNECTED = "NC"


@dataclass(frozen=True)
class Rail:
    """files: their product times `watts_per_unit` is the power."""

    name: str
    files: tuple[Path, ...]
    watts_per_unit: float


class RailMeter:
    """See :class:`deploy.power.PowerMeter`."""

    def __init__(self, source: str, rails: Sequence[Rail], hertz: float) -> None:
        self.source, self.hertz = source, hertz
        self._rails = tuple(rails)
        self.rail, self._summed = telling_rail([rail.name for rail in rails])
        names = tuple(rail.name for rail in rails)
        self.rails = names if self.rail in names else (*names, self.rail)

    def read(self) -> PowerSample:
        watts = {rail.name: self._watts(rail) for rail in self._rails}
        if self.rail not in watts:
            watts[self.rail] = sum(watts[name] for name in self._summed)
        return PowerSample(time.monotonic(), watts)

    def __enter__(self) -> RailMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _watts(self, rail: Rail) -> float:
        try:
            values = [int(path.read_text()) for path in rail.files]
        except (OSError, ValueError) as error:
            raise LabError(
                f"power: rail {rail.name} of the {self.source} cannot be read ({error}); if it stays so, "
                "restart the device, for its driver has lost the chip"
            ) from error
        return math.prod(values) * rail.watts_per_unit


def find_rails(root: Path) -> PowerMeter | None:
    """Every INA rail of this Jetson as one meter; None where there is none."""
    rails: list[Rail] = []
    sources: list[str] = []
    hertz = _MOST_HERTZ
    for chip in folders(root, "sys/class/hwmon/hwmon*"):
        kind = (read_text(chip / "name") or "").lower()
        found = list({"ina3221": _ina3221, "ina238": _ina238}.get(kind, _nothing)(chip))
        if found:
            rails += found
            sources.append(kind)
            hertz = min(hertz, _hertz(chip))
    if not rails:
        rails = [
            rail
            for chip in folders(root, "sys/bus/i2c/drivers/ina3221x/*/iio:device*")
            for rail in _iio(chip)
        ]
        sources, hertz = ["ina3221"], _USUAL_HERTZ
    if not rails:
        return None
    # The one that measures the whole says which chip it is.
    whole = telling_rail([rail.name for rail in rails])[0]
    of_whole = {str(path.parent) for rail in rails if rail.name == whole for path in rail.files}
    measured = any(read_text(Path(chip) / "name") == "ina238" for chip in of_whole)
    return RailMeter("ina238" if measured else sources[0], rails, hertz)


def _ina3221(chip: Path) -> Iterator[Rail]:
    for channel in (1, 2, 3):
        name = read_text(chip / f"in{channel}_label")
        files = chip / f"in{channel}_input", chip / f"curr{channel}_input"
        if name and name != _UNCONNECTED and None not in map(read_int, files):
            yield Rail(name, files, 1e-6)


def _ina238(chip: Path) -> Iterator[Rail]:
    """A Jetson has one, at its power input; the label is there from JetPack 7 on."""
    if read_int(chip / "power1_input") is not None:
        yield Rail(read_text(chip / "label") or "VIN", (chip / "power1_input",), 1e-6)


def _iio(chip: Path) -> Iterator[Rail]:
    for channel in (0, 1, 2):
        name, file = read_text(chip / f"rail_name_{channel}"), chip / f"in_power{channel}_input"
        if name and name != _UNCONNECTED and read_int(file) is not None:
            yield Rail(name, (file,), 1e-3)


def _nothing(chip: Path) -> Iterator[Rail]:
    return iter(())


def _hertz(chip: Path) -> float:
    """update_interval, in ms, is the time in which every channel has been converted once."""
    interval_ms = read_int(chip / "update_interval")
    return min(_MOST_HERTZ, 1e3 / interval_ms) if interval_ms else _USUAL_HERTZ
