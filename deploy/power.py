"""What is drawn, and what an image costs: the records, and what every power meter promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol


@dataclass(frozen=True)
class PowerSample:
    """seconds: by the monotonic clock. watts: of each rail, by the device's own name for it."""

    seconds: float
    watts: Mapping[str, float]


class PowerMeter(Protocol):
    """An opened source of power readings; use it in a `with`."""

    @property
    def source(self) -> str:
        """ina3221, ina238, tegrastats, rapl or nvml."""
        ...

    @property
    def rails(self) -> tuple[str, ...]: ...
    @property
    def rail(self) -> str:
        """The one that energy is told of: the whole module or card where there is such a rail."""
        ...

    @property
    def hertz(self) -> float:
        """How often it has something new to say."""
        ...

    def read(self) -> PowerSample:
        """Now, or for a counter of joules the mean since the last call. Raises LabError, never a blank."""
        ...

    def __enter__(self) -> PowerMeter: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Energy:
    """Of one variant at full load.

    watts: mean of each rail meanwhile. idle_watts: of `rail` before, with the model opened and nothing to do.
    joules_per_image: of `rail` in total; joules_per_image_above_idle: less what idling would have drawn.
    """

    source: str
    rail: str
    watts: Mapping[str, float]
    idle_watts: float
    joules_per_image: float
    joules_per_image_above_idle: float
    sample_hertz: float
    num_samples: int
