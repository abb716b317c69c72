"""What a search tries: points of its space, proposed by Optuna from what the points before have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from configs.compress import SpaceConfig
from deploy.errors import LabError

_AT_RANDOM = 8
"""Points before Optuna models what it has seen."""


@dataclass(frozen=True)
class Point:
    keep: float
    """Share of the MACs that pruning leaves; 1: not pruned."""
    energy: float
    """Share of the squared singular values that factorisation leaves; 1: not factorised."""
    precision: str

    @property
    def network(self) -> str:
        """Points that differ in precision alone are the same network."""
        return f"keep{100 * self.keep:g}-energy{100 * self.energy:g}"


@dataclass(frozen=True)
class Tried:
    """A point, measured. `latency`, `size` and `macs` are shares of the original FP32 network's."""

    point: Point
    folder: str
    """Of the stage that left it; that of `0-original` for the network as it was."""
    top1: float
    drop: float
    """Points of top-1 lost."""
    latency: float
    size: float
    macs: float
    parameters: int


def all_points(space: SpaceConfig) -> list[Point]:
    return [Point(*values) for values in product(space.keep, space.energy, space.precision)]


def next_point(tried: Sequence[Tried], space: SpaceConfig, seed: int) -> Point | None:
    """The point to try, None where all are tried: a function of its arguments, so that a search that was
    killed goes on with what it was doing.

    First the original network at each precision, which the others have to beat. Then multi-objective TPE
    (Ozaki et al. 2020), and where that repeats itself, another point at random.
    """
    done = {one.point for one in tried}
    left = [point for point in all_points(space) if point not in done]
    if not left:
        return None
    original = (max(space.keep), max(space.energy))
    first = next((point for point in left if (point.keep, point.energy) == original), None)
    if first is not None:
        return first
    proposed = _propose(tried, space, seed + len(tried))
    return (
        proposed if proposed in left else left[np.random.default_rng([seed, len(tried)]).integers(len(left))]
    )


def _propose(tried: Sequence[Tried], space: SpaceConfig, seed: int) -> Point:
    try:
        import optuna
    except ImportError as error:
        raise LabError("the search needs Optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes: Mapping[str, list[Any]] = {
        "keep": sorted(space.keep),
        "energy": sorted(space.energy),
        "precision": list(space.precision),
    }
    places: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1) for name, values in axes.items()
    }
    study = optuna.create_study(
        directions=["maximize", "minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=_AT_RANDOM),
    )
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: values.index(getattr(one.point, name)) for name, values in axes.items()},
                distributions=places,
                values=[one.top1, one.latency, one.size],
            )
            for one in tried
        ]
    )
    found = study.ask(places).params
    return Point(**{name: values[found[name]] for name, values in axes.items()})


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Those that no other beats in top-1, latency or size and equals in the rest (Pareto), fastest first."""
    best = unbeaten([(-one.top1, one.latency, one.size) for one in tried])
    return sorted((tried[i] for i in best), key=lambda one: one.latency)


def unbeaten(costs: Sequence[tuple[float, ...]]) -> list[int]:
    """The places of those that no other is below in one cost and not above in the rest (Pareto)."""
    return [
        i
        for i, mine in enumerate(costs)
        if not any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in costs)
    ]
