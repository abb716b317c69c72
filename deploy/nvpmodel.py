"""A Jetson's power mode by its name.

nvpmodel keeps the mode's number in /var/lib/nvpmodel/status (`pmode:0002 fmode:quiet`) and reads the names
from /etc/nvpmodel.conf (`< POWER_MODEL ID=2 NAME=MAXN_SUPER >`). A number is another mode on another module.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.system_files import read_text

_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)\s*>")
_STATUS = re.compile(r"pmode:\s*(\d+)")
_ANSWER = re.compile(r"NV Power Mode:\s*(\S+)")
_SECONDS = 3.0


@dataclass(frozen=True)
class PowerModes:
    """current: None where it is not known. names: by the number that `nvpmodel -m` takes."""

    current: str | None
    names: Mapping[int, str]

    def number(self, name: str) -> int | None:
        """In either case; None for a mode that this device does not have."""
        return next((n for n, known in self.names.items() if known.lower() == name.lower()), None)


def read_modes(root: Path = Path("/")) -> PowerModes:
    """From the files, and where they do not say from `nvpmodel -q`."""
    conf = read_text(root / "etc/nvpmodel.conf") or ""
    names = {int(number): name for number, name in _MODE.findall(conf)}
    status = _STATUS.search(read_text(root / "var/lib/nvpmodel/status") or "")
    current = names.get(int(status[1])) if status else None
    return PowerModes(current or _ask(root), names)


def _ask(root: Path) -> str | None:
    """Without root's rights nvpmodel answers on some releases only."""
    command = root / "usr/sbin/nvpmodel"
    try:
        done = subprocess.run(
            [str(command), "-q"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    answer = _ANSWER.search(done.stdout)
    return answer[1] if answer else None
