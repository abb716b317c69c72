"""How far a build is: TensorRT tells of phases within phases, a bar wants one number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """A phase takes one step of its parent, and a phase that begins inside a step is a part of that step."""

    def __init__(self, advance: Callable[[float], None] = lambda done: None) -> None:
        """advance: told what fraction of the whole was done since its last call."""
        self.cancelled = False
        self.told = 0.0
        self._advance = advance
        self._phases: dict[str, _Phase] = {}
        self._lock = Lock()  # TensorRT may call from several threads

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, steps)

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
                self._tell()

    def finish(self, name: str) -> None:
        """It counts in its parent's steps from here on."""
        with self._lock:
            self._phases.pop(name, None)

    def complete(self) -> None:
        """The build is over, whether all steps were told or not."""
        self._advance(1 - self.told)
        self.told = 1.0

    def _tell(self) -> None:
        roots = [name for name, phase in self._phases.items() if phase.parent not in self._phases]
        fraction = self._fraction(roots[0]) if roots else 0.0
        if fraction > self.told:  # phases overlap and may be told late: a bar never goes back
            self._advance(fraction - self.told)
            self.told = fraction

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inside = [child for child, other in self._phases.items() if other.parent == name]
        part = self._fraction(inside[-1]) if inside else 0.0
        return min(1.0, (phase.done + part) / max(1, phase.steps))
