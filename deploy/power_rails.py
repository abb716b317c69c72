"""Which of a Jetson's rails stands for the whole module; NVIDIA gave every generation other names.

The rails do not simply add up: a rail that measures the input holds all others, and on AGX Orin the memory's
rail is fed from the 5 V rail that is measured as well.
"""

from __future__ import annotations

from collections.abc import Sequence

# Measured where the power comes in; VIN (Thor) holds the carrier board, too.
_INPUTS = ("VIN", "VDD_IN", "POM_5V_IN")
_PARTS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),  # AGX Orin; VDDQ_VDD2_1V8AO is fed from VIN_SYS_5V0
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),  # Thor on a board without the INA238
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),  # AGX Xavier
)


def telling_rail(names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The rail that energy is told of, and those whose sum it is: itself, where it is measured.

    Where no rail measures the whole, the parts that make it up, joined by `+`; of rails that nobody knows
    here, all of them.
    """
    for name in _INPUTS:
        if name in names:
            return name, (name,)
    for parts in _PARTS:
        if set(parts) <= set(names):
            return "+".join(parts), parts
    return "+".join(names), tuple(names)
