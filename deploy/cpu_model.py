"""The time of each layer on a CPU, from ceilings that `python -m scripts.roofline` measured there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deploy.errors import LabError
from deploy.graph_cost import Layer

SCHEMA = 1
NEIGHBOURS = 3


@dataclass(frozen=True)
class ProductCeiling:
    """A convolution by itself, for one image, its input in the cache: 10^9 operations a second."""

    precision: str
    rows: int
    columns: int
    depth: int
    depthwise: bool
    gops: float


@dataclass(frozen=True)
class PassCeiling:
    """One pass over memory, which reads `bytes` / 2 and writes as many."""

    bytes: int
    gb_per_s: float


@dataclass(frozen=True)
class CpuCeilings:
    cpu: str
    threads: int
    runtime: str
    layer_us: float
    """Of a layer with nothing to do."""
    products: tuple[ProductCeiling, ...]
    passes: tuple[PassCeiling, ...]

    def write(self, path: Path) -> None:
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> CpuCeilings:
        """Raises LabError where the file is none of this schema or lacks a figure."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if raw.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            odd = sorted({item.name for item in fields(cls)} ^ set(raw))
            if odd:
                raise ValueError(f"keys {odd}")
            raw["products"] = tuple(ProductCeiling(**one) for one in raw["products"])
            raw["passes"] = tuple(PassCeiling(**one) for one in raw["passes"])
            if not raw["products"] or not raw["passes"]:
                raise ValueError("no figures")
            return cls(**raw)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabError(
                f"{path}: no ceilings of a CPU ({error}); measure them: "
                f"python -m scripts.roofline --json {path}"
            ) from error


def cpu_layer_seconds(layer: Layer, ceilings: CpuCeilings) -> float:
    """A layer's start + its weights' way from memory + the longer of products and pass over activations.

    Activations pass at the rate of their size, weights at that of the largest pass: no cache holds all of
    them till the next query. Raises LabError for a precision that was not measured.
    """
    moved = layer.read_bytes + layer.write_bytes
    near = min(ceilings.passes, key=lambda one: abs(math.log(one.bytes / max(1, moved))))
    far = max(ceilings.passes, key=lambda one: one.bytes)
    products = 2 * layer.macs / (_gops(layer, ceilings.products) * 1e9) if layer.macs else 0.0
    start = ceilings.layer_us * 1e-6 + layer.weight_bytes / (far.gb_per_s * 1e9)
    return start + max(products, moved / (near.gb_per_s * 1e9))


def _gops(layer: Layer, measured: Sequence[ProductCeiling]) -> float:
    """Between the measured shapes that are nearest in ratio, those at hand weighing most."""
    same = [one for one in measured if one.precision == layer.precision and one.depthwise == layer.depthwise]
    if not same:
        found = ", ".join(sorted({one.precision for one in measured}))
        raise LabError(f"the ceilings have no {layer.precision}, only {found}; measure them again")
    rows = layer.rows / layer.output_shape[0]

    def away(one: ProductCeiling) -> float:
        pairs = ((rows, one.rows), (layer.columns, one.columns), (layer.depth, one.depth))
        return sum(math.log2(a / b) ** 2 for a, b in pairs)

    near = sorted(same, key=away)[:NEIGHBOURS]
    weights = [1 / (away(one) + 0.1) for one in near]
    return math.exp(sum(w * math.log(one.gops) for w, one in zip(weights, near, strict=True)) / sum(weights))
