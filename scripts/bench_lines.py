"""What every benchmark prints alike: the machine, and ratios beside their goals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from deploy.machine import describe_machine, version


def machine_line(device: torch.device) -> str:
    machine = describe_machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine["cpu"]
    dali = version("nvidia-dali-cuda130")  # None where it is not installed: not every benchmark loads images
    versions = f"torch {torch.__version__}" + (f", DALI {dali}" if dali else "")
    return f"{name}, {machine['cores']} cores, Python {machine['python']}, {versions}"


def libraries_line(*distributions: str) -> str:
    """CPU and versions; a library that is not installed is left out."""
    machine = describe_machine()
    found = {name: version(name) for name in distributions}
    versions = ", ".join(f"{name} {known}" for name, known in found.items() if known)
    return f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, {versions}"


def ratio_line(what: str, ours: Sequence[float], theirs: Sequence[float], goal: str) -> str:
    """The median over the rounds of ours / theirs, its range, and the goal."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    middle = statistics.median(ratios)
    return f"  {what}: {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}); goal: {goal}"


def rate_line(name: str, rates: Sequence[float]) -> str:
    return f"  {name:11} {statistics.median(rates):8.0f} images/s ({min(rates):.0f} to {max(rates):.0f})"
