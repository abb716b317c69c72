"""Which variants may leave: those that lose no more accuracy than was agreed on before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from configs.quantize import GateConfig
from deploy.bundle import Variant
from deploy.errors import LabError
from optimize.variants import Made


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
            fate = "shipped because of gate.ship_failed" if gate.ship_failed else "not in the bundle"
            marks.append(
                f"GATE: {one.variant.name} is {drop:.2f} points below {reference}, gate.max_drop is "
                f"{gate.max_drop:g}: {fate}"
            )
    return shipped, marks
