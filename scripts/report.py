"""Write one interactive HTML page about a run, or several runs side by side. It opens offline.

`python -m scripts.report runs/a runs/b --out both.html`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from string import Template

from configs.load import from_yaml
from deploy.errors import LabError
from deploy.manifest import Bundle
from scripts import report_chain as chain
from scripts import report_classes as classes
from scripts import report_closeness as closeness
from scripts import report_device as device
from scripts import report_figures as plots
from scripts import report_html as html
from scripts import report_latency as latency
from scripts import report_search as search
from scripts.report_diagnosis import heat_map, read_diagnoses, section
from scripts.report_figures import Figure, Series
from scripts.report_run import Run, read_run
from scripts.report_trade_off import trade_off

TEMPLATE = Path(__file__).with_name("report_template.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description="Write one interactive HTML page about a run, or several runs side by side.",
        epilog="example: python -m scripts.report runs/a runs/b --out both.html",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in the first run's folder)")
    options = parser.parse_args(argv)
    try:
        print(write_report(options.runs, options.out))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page and return its path. Raises LabError for a folder with nothing in it to report."""
    target = out or folders[0] / "report.html"
    page = render([read_run(folder) for folder in folders])
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, encoding="utf-8")
    except OSError as error:
        raise LabError(f"{target}: cannot be written ({error.strerror}); choose another --out") from error
    return target


def render(runs: Sequence[Run]) -> str:
    """The whole page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise LabError("the report needs plotly: pip install plotly") from error
    labels = _labels(runs)
    series = [
        Series(label, run.metrics, run.rows, run.left_out) for label, run in zip(labels, runs, strict=True)
    ]
    f1_leads = any(run.classes is not None and run.classes["headline"] == "macro_f1" for run in runs)
    figures = _figures(series, f1_leads)
    for i, run in enumerate(runs):
        figures |= classes.figures(run.classes, run.cv, i)
        figures |= search.figures(run, i) | chain.figures(run, i)
    looked = read_diagnoses(labels, [run.path for run in runs])
    figures |= {name: heat_map(lines) for name, (_, lines) in looked.items()}
    body = [
        *(
            html.headline(run, label, i, len(runs), classes.headline_cards(run.classes))
            for i, (run, label) in enumerate(zip(runs, labels, strict=True))
        ),
        html.results(runs, labels),
        html.latency_section(figures),
        *_sections(runs, labels, figures),
        html.training_section(figures),
        section(looked),
        html.provenance(runs, labels),
    ]
    drawn = {name: figure for name, figure in figures.items() if figure}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(_title(runs)),
        lead=escape("; ".join(dict.fromkeys(_story(run) for run in runs))),
        body="\n".join(body),
        created=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        plotly=get_plotlyjs(),
        # "<" never appears, so no text of ours can end the script element.
        figures=json.dumps(drawn, allow_nan=False).replace("<", "\\u003c"),
    )


def _sections(runs: Sequence[Run], labels: Sequence[str], figures: dict[str, Figure | None]) -> Iterator[str]:
    """Those that a run has for itself."""
    alone = len(runs) == 1
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        whose = "" if alone else f": {label}"
        yield device.section(run, whose)
        if run.compared:
            yield closeness.section(run, whose)
        if run.search:
            yield search.section(run, whose, figures, i)
        if run.chain:
            yield chain.section(run, whose, figures, i)
        if run.classes is not None:
            yield classes.section(run.classes, label, figures, i, alone)
        if run.cv is not None:
            yield classes.cross_validation(run.cv, label, figures, i, alone)


def _labels(runs: Sequence[Run]) -> list[str]:
    """Folder names, with the parent's where two are the same."""
    names = [run.label for run in runs]
    return [
        name if names.count(name) == 1 else "/".join(run.path.resolve().parts[-2:])
        for name, run in zip(names, runs, strict=True)
    ]


def _title(runs: Sequence[Run]) -> str:
    names = [run.bundle.name if run.bundle else run.label for run in runs]
    return " and ".join(dict.fromkeys(names)) if len(set(names)) <= 2 else f"{len(runs)} runs side by side"


def _story(run: Run) -> str:
    """What was trained, in half a sentence, from whatever of the run is there."""
    config = from_yaml(run.config) if run.config else {}
    words = []
    for group, before in (("model", ""), ("data", "on "), ("loader", "read by "), ("strategy", "strategy ")):
        name = config.get(group, {}).get("name")
        if name:
            words.append(f"{before}{name}")
    evals = [m for m in run.metrics if m["kind"] == "eval"]
    if evals:
        words.append(f"{evals[-1]['epoch']} epochs, {evals[-1]['step']} steps")
    if run.bundle:
        words.append(_takes(run.bundle))
    if run.search:
        words.append(f"{len(run.search)} trials of a search")
    if run.measurements:
        machine = run.measurements[-1].machine
        words.append(f"measured on {machine.get('device') or machine.get('cpu') or 'an unnamed machine'}")
    return ", ".join(words) or run.label


def _takes(bundle: Bundle) -> str:
    if bundle.input is not None and bundle.input.class_names:
        return f"{bundle.input.num_classes} classes at {bundle.input.size} x {bundle.input.size} px"
    return "takes " + " and ".join(f"{spec.name} {spec}" for spec in bundle.inputs)


def _figures(series: Sequence[Series], f1_leads: bool) -> dict[str, Figure | None]:
    f1 = ("eval", "macro_f1", "macro F1", 100)
    accuracies = [("eval", "top1", "top-1", 100), ("eval", "top5", "top-5", 100)]
    accuracies = [f1, *accuracies] if f1_leads else [*accuracies, f1]
    return {
        "trade-off": trade_off(series),
        "histogram": latency.histogram(series),
        "tail": latency.tail(series),
        "timeline": latency.timeline(series),
        "loss": plots.curve(
            series, [("train", "loss", "training", 1), ("eval", "loss", "evaluation", 1)], "loss", log=True
        ),
        "top1": plots.curve(series, accuracies, "accuracy and macro F1, %", log=False),
        "lr": plots.curve(series, [("train", "lr", "learning rate", 1)], "learning rate", log=False),
        "speed": plots.curve(series, [("train", "images_per_s", "images/s", 1)], "images/s", log=False),
        "wait": plots.curve(
            series, [("train", "data_wait", "waiting for data", 100)], "waiting for data, %", log=False
        ),
        "norm": plots.curve(series, [("train", "grad_norm", "gradient norm", 1)], "gradient norm", log=True),
    }


if __name__ == "__main__":
    sys.exit(main())
