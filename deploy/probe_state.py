"""The doctor on the device's state: power mode, clocks, temperature, throttling, and what measures power."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from deploy.clocks import Clock, read_clocks
from deploy.device_state import DeviceState
from deploy.errors import LabError
from deploy.finding import Finding
from deploy.module import Module
from deploy.nvpmodel import PowerModes
from deploy.power_meters import find_meter
from deploy.system_files import read_text

_HOT_CELSIUS = 85.0
# Drivers round a mode's cap to a step of theirs (612 to 624.75 MHz); some of the targets' clocks are derived.
_NOT_THE_MODES = 0.1


def probe_power_mode(module: Module, modes: PowerModes, gpu: Clock | None) -> Finding:
    """With the fastest one, by the target's own peaks; of an unknown module it is the one called MAXN.

    gpu: its clock, by which one sees whether nvpmodel did what its status says.
    """
    if module.soc is None:
        return Finding(
            "power_mode", "ok", "none: this is no Jetson", facts={"current": None, "fastest": None}
        )
    fastest = _fastest(module, modes)
    facts = {
        "current": modes.current,
        "fastest": fastest,
        "modes": {name: number for number, name in modes.names.items()},
    }
    if modes.current is None:
        return Finding("power_mode", "note", "unknown: nvpmodel does not say", "sudo nvpmodel -q", facts)
    listed = ", ".join(f"{name} ({number})" for number, name in modes.names.items())
    among = f" of {listed}" if listed else ""
    if applied := _not_applied(module, modes.current, gpu):
        return Finding(
            "power_mode", "note", applied, f"sudo nvpmodel -m {modes.number(modes.current)}", facts
        )
    if fastest is None or fastest == modes.current:
        words = modes.current + (", the fastest" if fastest else "") + among
        return Finding("power_mode", "ok", words, facts=facts)
    words = f"{modes.current}; {fastest} is the fastest{among}"
    return Finding("power_mode", "note", words, f"sudo nvpmodel -m {modes.number(fastest)}", facts)


def _not_applied(module: Module, current: str, gpu: Clock | None) -> str | None:
    """nvpmodel can fail at the system's start and leave its status as it was."""
    known = (
        [mode for mode in module.target.power_modes if mode.name.lower() == current.lower()]
        if module.target
        else []
    )
    if not known or gpu is None or gpu.most is None or abs(gpu.most / known[0].gpu_mhz - 1) < _NOT_THE_MODES:
        return None
    return (
        f"{current} by nvpmodel's status, but the GPU's highest clock is {gpu.most:.0f} MHz and not the "
        f"mode's {known[0].gpu_mhz:.0f}: not applied"
    )


def _fastest(module: Module, modes: PowerModes) -> str | None:
    known = {name.lower(): name for name in modes.names.values()}
    if module.target:
        peaks = {
            known[mode.name.lower()]: (mode.num_sms * mode.gpu_mhz, mode.memory_gb_per_s, mode.watts or 1e9)
            for mode in module.target.power_modes
            if mode.name.lower() in known
        }
        if peaks:
            return max(peaks, key=lambda name: peaks[name])
    return next((name for key, name in sorted(known.items(), reverse=True) if key.startswith("maxn")), None)


def probe_clocks(root: Path, module: Module, state: DeviceState) -> Finding:
    """Locked or not; on x86 by the governor."""
    clocks = read_clocks(root)
    facts = {
        name: {"mhz": clock.mhz, "least": clock.least, "most": clock.most, "locked": clock.locked}
        for name, clock in clocks.items()
    } | {name: {"mhz": mhz} for name, mhz in state.mhz.items() if name not in clocks}
    words = ", ".join(_brief(clocks, state))
    if module.soc and "emc" not in clocks:
        words += f"{', ' if words else ''}EMC's for root only"
    if not words:
        return Finding("clocks", "ok", "the system does not tell them", facts=facts)
    governor = read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    moving = [name for name, clock in clocks.items() if clock.locked is False]
    if module.soc and moving:
        words += "; not locked, so figures vary"
        return Finding("clocks", "note", words, "sudo jetson_clocks (until the next start)", facts)
    if module.soc is None and governor not in (None, "performance"):
        words += f"; governor {governor}"
        return Finding("clocks", "note", words, "sudo cpupower frequency-set -g performance", facts)
    held = "; locked" if clocks and all(clock.locked for clock in clocks.values()) else ""
    return Finding("clocks", "ok", words + held, facts=facts)


def _brief(clocks: dict[str, Clock], state: DeviceState) -> Iterator[str]:
    cores = [clock for name, clock in clocks.items() if name.startswith("cpu")]
    if cores:
        most = max((core.most for core in cores if core.most), default=None)
        yield f"CPU {max(core.mhz for core in cores):.0f}" + (f" of {most:.0f} MHz" if most else " MHz")
    for name, mhz in state.mhz.items():
        if not name.startswith("cpu"):
            most = clocks[name].most if name in clocks else None
            label = name if " " in name else name.upper()
            yield f"{label} {mhz:.0f}" + (f" of {most:.0f} MHz" if most else " MHz")


def probe_temperature(state: DeviceState) -> Finding:
    if not state.celsius:
        return Finding("temperature", "ok", "the system does not tell it", facts={})
    hottest = max(state.celsius, key=lambda name: state.celsius[name])
    words = f"{state.celsius[hottest]:.0f} C at {hottest}, the hottest of {len(state.celsius)} zones"
    if state.celsius[hottest] >= _HOT_CELSIUS:
        return Finding("temperature", "note", words, "let it cool; check the fan", dict(state.celsius))
    return Finding("temperature", "ok", words, facts=dict(state.celsius))


def probe_throttling(state: DeviceState) -> Finding:
    facts = {"now": list(state.throttled), "events": dict(state.throttle_events)}
    counted = [f"{count} x {name}" for name, count in state.throttle_events.items() if count]
    since = f"since the start: {', '.join(counted)}" if counted else ""
    if state.throttled:
        words = f"held back now by {', '.join(state.throttled)}" + (f"; {since}" if since else "")
        return Finding("throttling", "PROBLEM", words, "cool it, or give it a stronger supply", facts)
    if counted:
        return Finding(
            "throttling", "note", f"none now; {since}", "watch it under load: cooling, supply", facts
        )
    return Finding("throttling", "ok", "none", facts=facts)


def probe_power_meter(root: Path, module: Module) -> Finding:
    """Each meter that this machine has, read once."""
    devices: tuple[Literal["gpu", "cpu"] | None, ...] = ("gpu", "cpu") if module.card else (None,)
    facts: dict[str, object] = {}
    words, missing = [], False
    for device in devices:
        name, label = device or "all", f"{device.upper()}: " if device else ""
        try:
            with find_meter(root, device) as meter:
                watts = meter.read().watts[meter.rail]
                facts[name] = {
                    "source": meter.source,
                    "rail": meter.rail,
                    "rails": list(meter.rails),
                    "hertz": meter.hertz,
                    "watts": watts,
                    "why": None,
                }
                words.append(
                    f"{label}{meter.source}, {meter.rail}, {meter.hertz:g} a second: {watts:.1f} W now"
                )
        except LabError as error:
            missing = True
            facts[name] = {"source": None, "why": str(error)}
            words.append(f"{label}no joules per image: {str(error).removeprefix('power: ')}")
    return Finding("power_meter", "note" if missing else "ok", "; ".join(words), facts=facts)
