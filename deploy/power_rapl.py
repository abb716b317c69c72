"""RAPL, the energy counters of x86 CPUs, by the kernel's power capping framework.

intel-rapl:N is a package or the platform (`psys`), intel-rapl:N:M a part of package N (core, uncore, dram).
energy_uj counts microjoules and starts again at 0 after max_energy_range_uj (kernel documentation,
power/powercap/powercap.rst). AMD's CPUs are there under the same names.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from deploy.errors import LabError
from deploy.power import PowerMeter, PowerSample
from deploy.system_files import folders, read_int, read_text

_HERTZ = 20.0
# The counter moves once in about a millisecond: over less than this its steps would be the reading.
_LEAST_S = 0.02


@dataclass(frozen=True)
class Counter:
    """range_uj: the highest value before it starts again."""

    name: str
    path: Path
    range_uj: int

    def read(self) -> int:
        try:
            return int(self.path.read_text())
        except PermissionError as error:
            raise LabError(
                f"power: {self.path} may be read by root only (the kernel's guard against CVE-2020-8694); "
                "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj, which holds until the next start"
            ) from error
        except (OSError, ValueError) as error:
            raise LabError(
                f"power: {self.path} cannot be read ({error}); is the module intel_rapl_msr still loaded?"
            ) from error


class RaplMeter:
    """The packages together are the rail that energy is told of: the CPUs without memory, fans and losses.

    See :class:`deploy.power.PowerMeter`.
    """

    source = "rapl"
    hertz = _HERTZ

    def __init__(self, counters: tuple[Counter, ...]) -> None:
        self._counters = counters
        names = tuple(counter.name for counter in counters)
        self._packages = tuple(name for name in names if name.startswith("package-") and "/" not in name)
        self.rail = "+".join(self._packages)
        self.rails = names if self.rail in names else (*names, self.rail)
        self._last = self._count()

    def read(self) -> PowerSample:
        before, counts = self._last
        time.sleep(max(0.0, before + _LEAST_S - time.monotonic()))
        now, after = self._last = self._count()
        watts = {
            counter.name: _grown(counts[counter.name], after[counter.name], counter.range_uj)
            / 1e6
            / (now - before)
            for counter in self._counters
        }
        if self.rail not in watts:
            watts[self.rail] = sum(watts[name] for name in self._packages)
        return PowerSample((before + now) / 2, watts)

    def __enter__(self) -> RaplMeter:
        self._last = self._count()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _count(self) -> tuple[float, dict[str, int]]:
        return time.monotonic(), {counter.name: counter.read() for counter in self._counters}


def find_rapl(root: Path) -> PowerMeter | None:
    """None where the kernel shows no package. Raises LabError where the counters may not be read."""
    found: dict[str, Counter] = {}
    for zone in folders(root, "sys/class/powercap/intel-rapl:*"):
        name, highest = read_text(zone / "name"), read_int(zone / "max_energy_range_uj")
        if name is None or highest is None:
            continue
        if zone.name.count(":") == 2:  # a part, told with its package, for every package has one of that name
            name = f"{read_text(zone.with_name(zone.name.rpartition(':')[0]) / 'name')}/{name}"
        found[name] = Counter(name, zone / "energy_uj", highest)
    if not any(name.startswith("package-") for name in found):
        return None
    return RaplMeter(tuple(found.values()))


def _grown(before: int, after: int, highest: int) -> int:
    """Microjoules between two readings that lie less than one turn of the counter apart."""
    return after - before if after >= before else after - before + highest + 1
