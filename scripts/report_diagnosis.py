"""The report's picture of what `diagnose` saw: gradient norms, a row a layer, a column a step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from deploy.errors import LabError
from scripts.report_figures import Figure

NAME = "diagnosis.jsonl"  # train.diagnosis writes it; to import that would take the seconds that torch takes
Line = dict[str, Any]
MAX_COLUMNS = 200


def read_diagnoses(labels: Sequence[str], run_dirs: Sequence[Path]) -> dict[str, tuple[str, list[Line]]]:
    """By the figure's name: which run's, in words, and its lines; nothing of runs that nobody looked into."""
    found = {}
    for number, (label, run_dir) in enumerate(zip(labels, run_dirs, strict=True)):
        lines = _read(run_dir)
        if lines:
            found[f"diagnosis-{number}"] = (f" of {label}" if len(labels) > 1 else "", lines)
    return found


def _read(run_dir: Path) -> list[Line]:
    path = run_dir / NAME
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break  # a run that is still writing
        try:
            raw = json.loads(line)
            found.append(
                {"step": int(raw["step"]), "layers": dict(raw["layers"]), "findings": raw["findings"]}
            )
        except (ValueError, TypeError, KeyError) as error:
            raise LabError(f"{path}, line {number}: {error!r}; remove that line") from error
    return found


def heat_map(lines: Sequence[Line]) -> Figure | None:
    """Logarithm to base 10 of the gradients' norms, the input at the top; None where there is none."""
    lines = lines[:: max(1, math.ceil(len(lines) / MAX_COLUMNS))]
    if not lines:
        return None
    names = list(lines[-1]["layers"])
    norms = [[line["layers"].get(name, {}).get("grad_norm") for line in lines] for name in names]
    return {
        "data": [
            {
                "type": "heatmap",
                "x": [str(line["step"]) for line in lines],
                "y": names,
                "z": [[round(math.log10(v), 3) if v else None for v in row] for row in norms],
                "colorscale": "Viridis",
                "colorbar": {"title": {"text": "log10"}},
                "hovertemplate": "%{y}, step %{x}: 10^%{z:.2f}<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"title": {"text": "step"}, "type": "category", "nticks": 10},
            "yaxis": {"autorange": "reversed", "nticks": 20},
        },
    }


def section(titles: Mapping[str, tuple[str, Sequence[Line]]]) -> str:
    """A card for each figure: its name, the run's label and its lines, with what was named and when first."""
    cards = []
    for figure, (label, lines) in titles.items():
        first = {words.split(" (")[0]: line["step"] for line in reversed(lines) for words in line["findings"]}
        named = "; ".join(f"{words}, first at step {step}" for words, step in first.items())
        note = f'<p class="note">{escape(named)}</p>' if named else ""
        cards.append(
            f'<div class="card"><h2>Diagnosis{escape(label)}</h2>'
            f'<p class="hint">Gradient norm of each layer{"" if named else "; nothing was found wrong"}.</p>'
            f'<div class="plot" id="{figure}"></div>{note}</div>'
        )
    return f"<section>{''.join(cards)}</section>" if cards else ""
