"""The report's section on a model of anyone's: how near each variant is to it, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from deploy.manifest import Variant
from scripts.report_html import table, tr
from scripts.report_run import Run


def section(run: Run, whose: str) -> str:
    """Of a run with variants that were compared."""
    variants = run.compared
    outputs = list(dict.fromkeys(name for v in variants for name in v.metrics["snr_db"]))
    lines = [
        tr([escape(v.name), *(_db(v.metrics["snr_db"].get(name)) for name in outputs), _layers(v.metrics)])
        for v in variants
    ]
    head = ["variant", *(f"{escape(name)}<br>SNR dB" for name in outputs), "layers in INT8"]
    hint = (
        f"Signal-to-noise ratio of each output against the original's, over {_count(variants)} samples that "
        "calibration has not seen: 20 dB is a tenth of the signal, 40 dB a hundredth."
    )
    facts = [f"<li>{escape(text)}</li>" for text in _done(variants[0])]
    facts += [
        f"<li>{escape(v.name)}, in float: {escape(', '.join(kept))}</li>"
        for v in variants
        if (kept := v.metrics.get("keep_float"))
    ]
    done = f'<br><div class="card"><ul>{"".join(facts)}</ul></div>' if facts else ""
    return (
        f"<section><h2>How near to the original{escape(whose)}</h2>"
        f'<p class="hint">{escape(hint)}</p>{table(head, lines)}{done}</section>'
    )


def _db(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, int | float) else "-"


def _layers(metrics: Mapping[str, Any]) -> str:
    if "num_layers" not in metrics:
        return "-"
    return escape(f"{metrics.get('num_int8_layers')} of {metrics['num_layers']}")


def _count(variants: list[Variant]) -> str:
    return str(variants[0].metrics.get("num_images", "some"))


def _done(variant: Variant) -> list[str]:
    """What reading did to the file, in words."""
    changes = variant.source.get("changes", [])
    return [str(text) for text in changes] if isinstance(changes, list) else []
