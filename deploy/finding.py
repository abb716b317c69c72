"""What the doctor says of one thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "note", "PROBLEM"]
"""note: it costs speed, or is worth knowing. PROBLEM: what this machine is meant for does not work."""


@dataclass(frozen=True)
class Finding:
    """key: stable, for programs. remedy: a command or a short sentence. facts: plain JSON types."""

    key: str
    status: Status
    text: str
    remedy: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
