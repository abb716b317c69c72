"""Which lanes there are here, and which run where nobody chose."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.backends import BACKENDS, BEST_FIRST, cannot_run, check_backend, is_installed
from deploy.bench import made_for
from deploy.bundle import Bundle
from deploy.demo.show import Lane
from deploy.errors import LabError
from deploy.manifest import Variant


def choices(bundle: Bundle) -> tuple[Lane, ...]:
    """Every variant with every backend that is installed here and can run it."""
    backends = [backend for backend in BACKENDS if is_installed(backend)]
    return tuple(
        Lane(variant.name, backend)
        for variant in bundle.variants
        for backend in backends
        if cannot_run(variant, backend) is None
    )


def default_sides(bundle: Bundle, offered: Sequence[Lane]) -> list[list[Lane]]:
    """FP32 and beside it INT8: for each of the two what to try, best backend first.

    INT8 is the variant that was made for the backend; where there is none, another one that was and is not
    FP32. A backend that can run both goes before one that can run one of them, because two backends side by
    side say nothing of INT8. A bundle of one variant has one side.
    """
    pairs = []
    for backend in BEST_FIRST:
        variants = (bundle.reference(), _smaller(bundle, backend))
        lanes = [variant and Lane(variant.name, backend) for variant in variants]
        pairs.append([lane if lane in offered else None for lane in lanes])
    pairs.sort(key=lambda pair: None in pair)
    sides = [[lane for lane in side if lane] for side in zip(*pairs, strict=True)]
    return [side for side in sides if side]


def check_lane(bundle: Bundle, lane: Lane) -> None:
    """Raises LabError for a variant or a backend that there is not, and for two that do not go together."""
    check_backend(lane.backend)
    if reason := cannot_run(bundle.variant(lane.variant), lane.backend):
        raise LabError(f"{words(lane)}: cannot be run: {reason}")


def words(lane: Lane) -> str:
    return f"{lane.variant} ({lane.backend})"


def _smaller(bundle: Bundle, backend: str) -> Variant | None:
    try:
        made = [bundle.variant(name) for name in made_for(bundle, backend)]
    except LabError:  # none was
        return None
    others = [variant for variant in made if variant.precision != "fp32"]
    int8 = [variant for variant in others if variant.precision == "int8"]
    return next(iter(int8 or others), None)
