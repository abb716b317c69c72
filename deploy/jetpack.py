"""Which JetPack is installed: Jetson Linux by /etc/nv_tegra_release, JetPack's own package by dpkg."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deploy.system_files import read_text
from deploy.target import JetPack

_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_BEFORE = {"32": "4", "34": "5", "35": "5", "36": "6.0"}
OLDEST_LINUX = (36, 4)
"""Of JetPack 6.1, the first whose TensorRT edgelab builds for."""


@dataclass(frozen=True)
class Release:
    """linux: Jetson Linux, "36.4.3". package: the version of nvidia-jetpack, None where it is not
    installed."""

    linux: str | None
    package: str | None

    @property
    def number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in (self.linux or "").split(".") if part.isdigit())

    @property
    def too_old(self) -> bool:
        return bool(self.number) and self.number < OLDEST_LINUX

    @property
    def name(self) -> str:
        """`JetPack 6.2+b77` by its package, else what Jetson Linux tells of it."""
        if self.package:
            return f"JetPack {self.package}"
        return f"JetPack {_BEFORE.get(str(self.number[0]), 'unknown')}" if self.too_old else "JetPack"

    def is_exactly(self, jetpack: JetPack) -> bool:
        """Not a later patch of it; 38.2 is 38.2.0."""
        return _three(self.number) == _three(_figures(jetpack.jetson_linux))

    def row(self, known: tuple[JetPack, ...]) -> JetPack | None:
        """The one that this is or is a patch of: the latest of the same two figures that is not later."""
        fitting = [
            (figures, jetpack)
            for jetpack in known
            if (figures := _figures(jetpack.jetson_linux))[:2] == self.number[:2] and figures <= self.number
        ]
        return max(fitting, key=lambda pair: pair[0])[1] if fitting else None


def read_release(root: Path = Path("/")) -> Release:
    """Never raises; both None where this is no Jetson, or a container without its files."""
    found = _RELEASE.search(read_text(root / "etc/nv_tegra_release") or "")
    core = package_version(root, "nvidia-l4t-core")
    linux = f"{found[1]}.{found[2]}" if found else core.partition("-")[0] if core else None
    return Release(linux, package_version(root, "nvidia-jetpack"))


def package_version(root: Path, name: str) -> str | None:
    """Of an installed Debian package."""
    text = read_text(root / "var/lib/dpkg/status") or ""
    entry = re.search(rf"^Package: {re.escape(name)}\n(?:.+\n?)+", text, re.MULTILINE)
    if entry is None or "\nStatus: install ok installed" not in entry[0]:
        return None
    version = re.search(r"^Version: (\S+)", entry[0], re.MULTILINE)
    return version[1] if version else None


def _three(number: tuple[int, ...]) -> tuple[int, ...]:
    return (*number, 0, 0)[:3]


def _figures(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
