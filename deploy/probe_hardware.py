"""The doctor on hardware: the machine, memory, disk, DLA, cameras, and the programs that the demo calls."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.finding import Finding
from deploy.interpreter import Interpreter
from deploy.jetpack import Release
from deploy.module import Module
from deploy.system_files import folders, is_there, read_text

_MIB = 1 << 20
# A ResNet-50's engine takes about 1 GiB while it is built, and some 100 MB on the disk.
_LITTLE_MEMORY_MIB = 1500
_LITTLE_DISK_MIB = 1024
_DESKTOP = "sudo systemctl isolate multi-user.target ends the desktop; close other programs"
_PROGRAMS = {"gst-launch-1.0": "gstreamer1.0-tools", "ffmpeg": "ffmpeg"}
_PLACES = ("usr/bin", "usr/local/bin", "usr/sbin", "bin")


def probe_machine(module: Module, cores: int, dot_product: bool | None) -> Finding:
    """dot_product: as :func:`deploy.machine.has_int8_dot_product` says."""
    facts = {
        "model": module.model,
        "soc": module.soc,
        "card": module.card,
        "target": module.target_name,
        "cores": cores,
        "int8_dot_product": dot_product,
    }
    words = f"{module.title}, {cores} cores" + (f", {module.card}" if module.card else "")
    if dot_product is False:
        words += "; no INT8 dot product (VNNI, dotprod): INT8 gains little on this CPU"
    if module.target_name:
        words += f"; target {module.target_name}"
    if module.why_no_target:
        return Finding(
            "machine", "note", f"{words}, whose file cannot be read: {module.why_no_target}", None, facts
        )
    if module.soc and not module.target_name and not module.too_old:
        return Finding("machine", "note", f"{words}; no target describes this module", None, facts)
    return Finding("machine", "ok", words, facts=facts)


def probe_memory(root: Path, module: Module) -> Iterator[Finding]:
    told = {
        line.split(":")[0]: int(line.split()[1]) // 1024
        for line in (read_text(root / "proc/meminfo") or "").splitlines()
        if line.endswith(" kB") and line.split()[1].isdigit()
    }
    total, free = told.get("MemTotal"), told.get("MemAvailable")
    facts = {"total_mib": total, "available_mib": free}
    if total is None or free is None:
        yield Finding("memory", "note", "unknown: /proc/meminfo does not say", None, facts)
    else:
        words = f"{free} of {total} MiB are free"
        if module.soc:
            words += ", shared by CPU and GPU"
        if free < _LITTLE_MEMORY_MIB:
            words += "; building engines wants more"
            yield Finding("memory", "note", words, _DESKTOP if module.soc else "close other programs", facts)
        else:
            yield Finding("memory", "ok", words, facts=facts)
    swap, swap_free = told.get("SwapTotal"), told.get("SwapFree")
    kept = {"total_mib": swap, "free_mib": swap_free}
    if swap:
        yield Finding("swap", "ok", f"{swap_free} of {swap} MiB are free", facts=kept)
    elif module.soc and (total or 0) < 17_000:
        remedy = (
            "sudo fallocate -l 8G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile && "
            "sudo swapon /swapfile"
        )
        yield Finding("swap", "note", "none: large engines may fail to build", remedy, kept)
    else:
        yield Finding("swap", "ok", "none", facts=kept)


def probe_disk(folder: Path) -> Finding:
    """Where engines will be kept; the nearest folder above that is there."""
    place = folder
    while not is_there(place) and place != place.parent:
        place = place.parent
    facts: dict[str, object] = {"folder": str(folder)}
    try:
        free = shutil.disk_usage(place).free // _MIB
    except OSError as error:
        return Finding("disk", "note", f"unknown for {place}: {error.strerror}", None, facts)
    facts["free_mib"] = free
    words = f"{free} MiB are free for engines in {folder}"
    if free < _LITTLE_DISK_MIB:
        return Finding(
            "disk", "note", words, "free some, or set EDGELAB_ENGINES to a folder elsewhere", facts
        )
    return Finding("disk", "ok", words, facts=facts)


def probe_dla(module: Module, release: Release, python: Interpreter) -> Finding:
    """In hardware by the target, in this TensorRT by what it says, else by the JetPack's row."""
    cores = module.target.dla.num_cores if module.target and module.target.dla else 0
    found = python.libraries.get("tensorrt")
    reported = found.told.get("num_dla_cores") if found else None
    facts: dict[str, object] = {"num_cores": cores, "num_reported": reported, "route": None}
    if not cores:
        words = (
            f"none in {module.target.title}"
            if module.target
            else "none: only Jetson Xavier and Orin modules have it"
        )
        return Finding("dla", "ok", words, facts=facts)
    assert module.target is not None
    row = release.row(module.target.jetpacks)
    facts["route"] = row.dla if row else None
    words = f"{cores} core{'s' if cores > 1 else ''} in hardware"
    if module.too_old:
        return Finding("dla", "note", f"{words}; out of scope: {module.too_old}", None, facts)
    if reported == 0:
        why = f": {row.why}" if row and row.dla == "none" else ""
        return Finding(
            "dla", "note", f"{words}, TensorRT reports none{why}", "stay on JetPack 6 for DLA", facts
        )
    if row is None:
        return Finding(
            "dla", "note", f"{words}; whether this JetPack's TensorRT uses it is not known", None, facts
        )
    if row.dla == "none":
        return Finding("dla", "note", f"{words}, not usable: {row.why}", "stay on JetPack 6 for DLA", facts)
    version = found.version if found else None
    if version and not version.startswith(row.tensorrt):
        words += f"; the table's word is for TensorRT {row.tensorrt}, and this is {version}"
        return Finding("dla", "note", f"{words}: {row.why}", None, facts)
    return Finding("dla", "ok", f"{words}. {row.why}", facts=facts)


def probe_cameras(root: Path, module: Module) -> Finding:
    named = {
        f"/dev/{path.name}": read_text(path / "name") or "?"
        for path in folders(root, "sys/class/video4linux/*")
    }
    argus = _program(root, "nvargus-daemon") is not None
    facts = {"devices": named, "nvargus": argus}
    words = ", ".join(f"{device} ({name})" for device, name in named.items())
    if module.soc and not argus:
        words = f"{words or 'no /dev/video*'}; nvargus-daemon is not here, which CSI cameras need"
        return Finding("cameras", "note", words, "sudo apt install nvidia-l4t-camera", facts)
    return Finding(
        "cameras", "ok", words or "none: use a video, a folder or uploads as the source", facts=facts
    )


def probe_programs(root: Path, module: Module) -> Finding:
    """Of the demo: GStreamer for a Jetson's camera, ffmpeg or GStreamer for videos."""
    found = {name: _program(root, name) for name in _PROGRAMS}
    there = [name for name, path in found.items() if path]
    wanted = ["gst-launch-1.0"] if module.soc else [] if there else list(_PROGRAMS)
    missing = [name for name in wanted if name not in there]
    words = ", ".join(there) or "neither gst-launch-1.0 nor ffmpeg"
    if missing:
        packages = " ".join(_PROGRAMS[name] for name in missing)
        words += "" if not there else f"; {', '.join(missing)} is not here"
        return Finding(
            "programs", "note", f"{words}: for cameras and videos", f"sudo apt install {packages}", found
        )
    return Finding("programs", "ok", words, facts=found)


def _program(root: Path, name: str) -> str | None:
    if root == Path("/") and (found := shutil.which(name)):
        return found
    return next((f"/{place}/{name}" for place in _PLACES if is_there(root / place / name)), None)
