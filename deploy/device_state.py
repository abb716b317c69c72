"""In what state the device is: clocks, temperatures, power mode, throttling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.clocks import read_clocks
from deploy.gpu_state import read_gpu
from deploy.nvpmodel import read_modes
from deploy.system_files import folders, read_int, read_text
from deploy.throttling import active_throttling, throttle_events

_MOVED = 0.05


@dataclass(frozen=True)
class DeviceState:
    """What the system says at one moment; empty or None where it does not.

    mhz: clocks by name (`cpu0`, `gpu`, `emc`, `dla0`). celsius: thermal zones by name. power_mode: by name
    (nvpmodel's). throttled: what holds the clocks back, in the system's words. throttle_events: counters
    since the system's start, for what is over before anybody looks; their growth counts.
    """

    mhz: Mapping[str, float]
    celsius: Mapping[str, float]
    power_mode: str | None
    throttled: tuple[str, ...]
    throttle_events: Mapping[str, int] = field(default_factory=dict)


def read_state(root: Path = Path("/")) -> DeviceState:
    """A few milliseconds, from files that need no rights; never raises for what cannot be read.

    EMC's and DLA's clocks are there for root only. A card's own clock, temperature and reasons come by NVML
    where its module is installed.
    """
    clocks = {name: clock.mhz for name, clock in read_clocks(root).items()}
    card = read_gpu(root)
    return DeviceState(
        mhz={**clocks, **card.mhz},
        celsius={**_temperatures(root), **card.celsius},
        power_mode=read_modes(root).current,
        throttled=(*active_throttling(root), *card.throttled),
        throttle_events=throttle_events(root),
    )


def changes(before: DeviceState, during: Sequence[DeviceState], after: DeviceState) -> list[str]:
    """What makes a measurement doubtful, a sentence each; empty where nothing does.

    Clocks are compared within `during`, for an idle device lowers them by itself; CPU cores by the fastest
    one. A GPU, memory or DLA that runs slower under load than before it is held back from the first moment.
    """
    return [*_modes(before, during, after), *_clocks(before, during), *_throttling(before, during, after)]


def _modes(before: DeviceState, during: Sequence[DeviceState], after: DeviceState) -> Iterator[str]:
    seen = list(dict.fromkeys(state.power_mode or "unknown" for state in (before, *during, after)))
    if len(seen) > 1:
        yield f"the power mode changed meanwhile: {', then '.join(seen)}; measure again in one mode"


def _clocks(before: DeviceState, during: Sequence[DeviceState]) -> Iterator[str]:
    first = _by_part(before)
    seen: dict[str, list[float]] = {}
    for state in during:
        for name, mhz in _by_part(state).items():
            seen.setdefault(name, []).append(mhz)
    for name, values in seen.items():
        least, most = min(values), max(values)
        if least < (1 - _MOVED) * most:
            yield (
                f"the clock {name} moved between {least:.0f} and {most:.0f} MHz meanwhile; lock it (on a "
                "Jetson: sudo jetson_clocks) or tell the range with the figure"
            )
        elif name != "cpu" and most < (1 - _MOVED) * first.get(name, 0.0):
            yield f"the clock {name} ran at {most:.0f} MHz under load, below the {first[name]:.0f} MHz before"


def _by_part(state: DeviceState) -> dict[str, float]:
    """All CPU cores as one: cores without work slow down without harm."""
    cores = [mhz for name, mhz in state.mhz.items() if name.startswith("cpu")]
    others = {name: mhz for name, mhz in state.mhz.items() if not name.startswith("cpu")}
    return ({"cpu": max(cores)} if cores else {}) | others


def _throttling(before: DeviceState, during: Sequence[DeviceState], after: DeviceState) -> Iterator[str]:
    later = sorted({reason for state in (*during, after) for reason in state.throttled})
    new = [reason for reason in later if reason not in before.throttled]
    if before.throttled:
        yield f"throttled already before: {', '.join(before.throttled)}; let it cool or give it more power"
    if new:
        yield f"throttling set in: {', '.join(new)}; the figures are those of a device that is held back"
    for name, count in after.throttle_events.items():
        grown = count - before.throttle_events.get(name, count)
        if grown > 0:
            yield f"throttled {grown} times meanwhile: {name}; cool it better or give it a stronger supply"


def _temperatures(root: Path) -> dict[str, float]:
    """Zones of parts that are switched off cannot be read, or say -256; x86 CPUs by coretemp's zone."""
    found = {}
    for zone in folders(root, "sys/class/thermal/thermal_zone*"):
        name, millidegrees = read_text(zone / "type"), read_int(zone / "temp")
        if name and millidegrees is not None and millidegrees > -100_000:
            found[name.removesuffix("-thermal")] = millidegrees / 1e3
    return found
