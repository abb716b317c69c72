"""Estimates as a plain-text table: the range of each, and what a reader must not overlook under it."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.estimate import Estimate, Range
from deploy.table import aligned

_HEAD = ["variant", "batch", "p50 ms", "from", "to", "images/s", "from", "to", "mJ/image", "from", "to"]


def format_estimates(estimates: Sequence[Estimate]) -> str:
    """A line for each variant and batch, then the notes, each once."""
    first = estimates[0]
    mode = f" in {first.mode}" if first.mode else ""
    cells = [_HEAD] + [
        [
            one.variant,
            str(one.batch),
            *_numbers(one.latency_ms),
            *_numbers(one.images_per_s),
            *(_numbers(one.energy_mj) if one.energy_mj else ("-", "-", "-")),
        ]
        for one in estimates
    ]
    notes = list(dict.fromkeys(note for one in estimates for note in one.notes))
    dla = [one for one in estimates if one.dla_images_per_s]
    lines = [
        f"{first.target}{mode}: estimated, not measured; of ten published figures eight lay in such a range",
        *aligned(cells, "<" + ">" * (len(_HEAD) - 1)),
        *(f"note: {note}" for note in notes),
    ]
    if dla:
        most = max(one.dla_images_per_s or 0.0 for one in dla)
        lines.append(
            f"note: DLA cores are not in these figures; beside the GPU they could do {most:,.0f} images/s."
        )
    return "\n".join(lines)


def _numbers(one: Range) -> tuple[str, str, str]:
    return _number(one.p50), _number(one.low), _number(one.high)


def _number(value: float) -> str:
    """Three digits: an estimate has no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
