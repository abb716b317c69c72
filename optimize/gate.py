"""Which variants may leave: those that lose no more accuracy than was agreed on before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from configs.quantize import GateConfig
from deploy.bundle import Variant
from deploy.errors import LabError
from deploy.results import Accuracy
from optimize.variants import Made


def judge_closeness(
    made: Sequence[Made], found: Mapping[str, Accuracy], gate: GateConfig, min_snr_db: float | None
) -> tuple[list[Variant], list[str]]:
    """As :func:`judge`, of what was compared on tensors: by top-1 where there were labels, else by the output
    that is farthest from the original's, which must be `min_snr_db` near; None: any is near enough."""
    scored = {one.variant.name: found[one.same_as] for one in made}
    told = [replace(one, variant=_with_scores(one.variant, scored[one.variant.name])) for one in made]
    top1 = {name: accuracy.top1 for name, accuracy in scored.items() if accuracy.top1 is not None}
    if top1:
        return judge(told, top1, scored[made[0].variant.name].num_images or 0, gate)
    shipped, marks = [], []
    for one in told:
        name = one.variant.name
        least = min((scored[name].snr_db or {}).values())
        # Rounded as it is shown.
        passed = name == made[0].variant.name or min_snr_db is None or round(least, 6) >= min_snr_db
        judged = {"gate": {"min_snr_db": min_snr_db, "snr_db": least, "passed": passed}}
        if passed or gate.ship_failed:
            shipped.append(replace(one.variant, metrics=one.variant.metrics | judged))
        if not passed:
            marks.append(
                f"GATE: {name} is {least:.2f} dB from {made[0].variant.name}, min_snr_db is {min_snr_db:g}: "
                f"{_fate(gate)}"
            )
    return shipped, marks


def _with_scores(variant: Variant, accuracy: Accuracy) -> Variant:
    scores: dict[str, Any] = {"num_images": accuracy.num_images, "snr_db": accuracy.snr_db}
    if accuracy.agreement_with_fp32 is not None:
        scores["agreement_with_fp32"] = accuracy.agreement_with_fp32
    return replace(variant, metrics=variant.metrics | scores)


def _fate(gate: GateConfig) -> str:
    return "shipped because of gate.ship_failed" if gate.ship_failed else "not in the bundle"


def judge(
    made: Sequence[Made], top1: Mapping[str, float], num_images: int, gate: GateConfig
) -> tuple[list[Variant], list[str]]:
    """The variants that are shipped, with their accuracy among their metrics, and a line for each that falls
    through the gate.

    `top1`: shares of `num_images`, by the variant's name. The first variant is what the others are held
    against; it always leaves. A form without a figure has that of the form with the same integers. Raises
    LabError where an accuracy is missing.
    """
    reference = made[0].variant.name
    shipped, marks = [], []
    for one in made:
        accuracy, best = top1.get(one.same_as), top1.get(reference)
        if accuracy is None or best is None:
            raise LabError(f"{one.variant.name}: its accuracy was not measured, so that no gate can hold")
        drop = 100 * (best - accuracy)
        # Rounded as it is shown: 0.5 points of 360 images must not fall through 0.5 by the last bit.
        passed = one.variant.name == reference or round(drop, 6) <= gate.max_drop
        found = {
            "top1": accuracy,
            "num_images": num_images,
            "gate": {"max_drop": gate.max_drop, "drop": drop, "passed": passed},
        }
        if passed or gate.ship_failed:
            shipped.append(replace(one.variant, metrics=one.variant.metrics | found))
        if not passed:
            marks.append(
                f"GATE: {one.variant.name} is {drop:.2f} points below {reference}, gate.max_drop is "
                f"{gate.max_drop:g}: {_fate(gate)}"
            )
    return shipped, marks
