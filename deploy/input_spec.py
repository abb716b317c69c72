"""What a network expects of an image. The single home of the preprocessing rule."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from deploy.errors import LabError

INTERPOLATION = "bilinear-antialias"
COLOUR = "RGB"
LAYOUT = "NCHW"


@dataclass(frozen=True)
class InputSpec:
    """How an image file becomes the network's input.

    1. decode to 8-bit RGB, upright (the EXIF orientation applied);
    2. resize so that the shorter side is `resize` px (:meth:`resized_shape`), bilinear, antialiased when it
       shrinks (a triangle filter of the width of one source-pixel step, in floating point, not rounded);
    3. cut the square of `size` px at :meth:`crop_offset`;
    4. divide by 255, subtract `mean`, divide by `std`, channel by channel;
    5. lay out as float32 3 x size x size.

    DALI, torchvision and numpy each implement these five lines; a parity test holds the three together.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    interpolation: str = INTERPOLATION
    colour: str = COLOUR
    layout: str = LAYOUT

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.size <= self.resize:
            problems.append(f"size {self.size} must be at least 1 and at most resize {self.resize}")
        if {len(self.mean), len(self.std)} != {3}:
            problems.append(f"mean and std need three values each, got {self.mean} and {self.std}")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or not all(v > 0 for v in self.std):
            problems.append(f"mean {self.mean} must be finite and std {self.std} finite and positive")
        if len(self.class_names) == 1 or len(set(self.class_names)) != len(self.class_names):
            problems.append(
                f"class_names must be two or more, each once, or none, got {list(self.class_names)[:8]}"
            )
        for field, known in (("interpolation", INTERPOLATION), ("colour", COLOUR), ("layout", LAYOUT)):
            if getattr(self, field) != known:
                problems.append(f"{field} {getattr(self, field)!r} is not supported, only {known!r}")
        if problems:
            raise LabError("input spec: " + "; ".join(problems))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in px after step 2; the longer side is rounded down."""
        shorter = min(height, width)
        return self.resize * height // shorter, self.resize * width // shorter

    def crop_offset(self, height: int, width: int) -> tuple[int, int]:
        """Top and left in px of the centred square in a resized image of this shape, rounded down."""
        return (height - self.size) // 2, (width - self.size) // 2

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Any) -> InputSpec:
        """The inverse of :meth:`to_dict`. Raises LabError for missing or unknown keys and wrong types."""
        if not isinstance(raw, dict):
            raise LabError(f"input spec: expected an object, got {type(raw).__name__}")
        names = {f.name for f in fields(cls)}
        if set(raw) != names:
            raise LabError(
                f"input spec: missing {sorted(names - set(raw))}, unknown {sorted(set(raw) - names)}; "
                "the file was written by another version of edgelab"
            )
        try:
            return cls(
                size=int(raw["size"]),
                resize=int(raw["resize"]),
                mean=tuple(float(v) for v in raw["mean"]),
                std=tuple(float(v) for v in raw["std"]),
                class_names=tuple(str(v) for v in raw["class_names"]),
                interpolation=str(raw["interpolation"]),
                colour=str(raw["colour"]),
                layout=str(raw["layout"]),
            )
        except (TypeError, ValueError) as error:
            raise LabError(f"input spec: {error}") from error
