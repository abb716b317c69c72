"""Which Jetson module this is, or which machine: by the device tree and /proc, and the target that
describes it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import LabError
from deploy.machine import cpu_facts
from deploy.system_files import folders, read_text
from deploy.target import Target, load_target

# By the module's part number in the device tree's `compatible`; 699-level part numbers of NVIDIA's data
# sheets.
_MODULES = {
    "p3767-0000": "orin_nx_16gb",
    "p3767-0001": "orin_nx_8gb",
    "p3767-0003": "orin_nano_8gb",
    "p3767-0004": "orin_nano_4gb",
    "p3767-0005": "orin_nano_8gb",
    "p3701-0000": "agx_orin_64gb",  # of the first developer kit: its clocks and cores, with 32 GB
    "p3701-0004": "agx_orin_32gb",
    "p3701-0005": "agx_orin_64gb",
    "p3834-0008": "thor_t5000",
}
_FAMILIES = {
    "tegra210": "Jetson Nano or TX1",
    "tegra186": "Jetson TX2",
    "tegra194": "Jetson Xavier",
    "tegra234": "Jetson Orin",
    "tegra264": "Jetson Thor",
}
_TOO_OLD = {
    "tegra210": "its last JetPack is 4.6, with TensorRT 8.2",
    "tegra186": "its last JetPack is 4.6, with TensorRT 8.2",
    "tegra194": "its last JetPack is 5, with TensorRT 8.5",
}
_XAVIER = {"p3668": "xavier_nx", "p2888": "agx_xavier", "p2972": "agx_xavier"}
_CARDS = {"H200": "h200", "H100": "h100", "A100": "a100", "L4": "l4"}


@dataclass(frozen=True)
class Module:
    """model: as the system names it. soc: tegra234 and such, None where this is no Jetson.

    card: the model of an NVIDIA card. target_name: of configs/target; None where none describes this machine.
    target: None, too, where its file cannot be read, and then `why_no_target` says why.
    too_old: why no TensorRT on it is new enough; None where one is.
    """

    model: str | None
    soc: str | None
    card: str | None
    target_name: str | None
    target: Target | None
    why_no_target: str | None
    too_old: str | None

    @property
    def has_gpu(self) -> bool:
        return self.soc is not None or self.card is not None

    @property
    def title(self) -> str:
        if self.soc and self.target is None:
            return f"{self.model or 'a board without a name'} ({_FAMILIES.get(self.soc, self.soc)})"
        return self.model or "unknown"


def find_module(root: Path = Path("/")) -> Module:
    """Never raises."""
    compatible = (read_text(root / "proc/device-tree/compatible") or "").split("\0")
    soc = next((name.partition(",")[2] for name in compatible if name.startswith("nvidia,tegra")), None)
    card = None if soc else _card(root)
    model = read_text(root / "proc/device-tree/model") if soc else cpu_facts(root).get("model name")
    name = _jetson(compatible) if soc else _target_of_card(card)
    target, why = None, None
    if name:
        try:
            target = load_target(name)
        except LabError as error:
            why = str(error)
    return Module(model, soc, card, name, target, why, _TOO_OLD.get(soc or ""))


def _jetson(compatible: list[str]) -> str | None:
    parts = re.findall(r"p\d{4}(?:-\d{4})?", " ".join(compatible))
    for part in parts:
        if name := _MODULES.get(part) or _XAVIER.get(part[:5]):
            return name
    return None


def _card(root: Path) -> str | None:
    """Of the first card, from the driver's `Model: NVIDIA L4`."""
    for folder in folders(root, "proc/driver/nvidia/gpus/*"):
        found = re.search(r"Model:\s*(.+)", read_text(folder / "information") or "")
        return found[1].strip() if found else "an NVIDIA card"
    return None


def _target_of_card(card: str | None) -> str | None:
    words = re.split(r"[\s-]+", card or "")
    return next((target for word, target in _CARDS.items() if word in words), None)
