"""What a run tells: the console, a log file for each rank, metrics.jsonl, TensorBoard, W&B. Only rank 0
writes all but the log files."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import summary

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from train.class_metrics import known
from train.events import EventLog
from train.metrics import EvalResult
from train.wandb_log import WandbLog

log = logging.getLogger("edgelab")
log_file = logging.getLogger("edgelab.file")
"""For what the console is told in another way."""
_console = Console(stderr=True)
MAX_DRAWN_CLASSES = 50
"""A confusion matrix of more cells than this a side cannot be read."""
MAX_PR_CURVES = 20
"""In TensorBoard; of more classes, those with the fewest images."""


def start_logging(folder: Path, rank: int) -> None:
    """Every rank logs to a file of its own; rank 0 to the console too."""
    folder.mkdir(parents=True, exist_ok=True)
    file = _LogFile(folder / f"rank{rank}.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for logger, handlers in ((log, [file, *_console_handlers(rank)]), (log_file, [file])):
        for old in logger.handlers:
            old.close()
        logger.handlers[:] = handlers
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        """On a full disk logging prints a traceback for each line, which hides the one error that matters."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def own_mistakes(rank: int) -> Iterator[None]:
    """Around what may fail on one rank alone; rank 0's are told by the command itself."""
    try:
        yield
    except LabError as error:
        if rank != 0:
            print(f"error: rank {rank}: {error}", file=sys.stderr)
        raise


def _console_handlers(rank: int) -> list[logging.Handler]:
    if rank != 0:
        return []
    if not _console.is_terminal:
        return [logging.StreamHandler(sys.stderr)]
    # Rich's own, so that a line does not tear the progress bar.
    return [RichHandler(console=_console, show_path=False, show_level=False, markup=False)]


@contextmanager
def progress_bar(title: str, enabled: bool) -> Iterator[Any]:
    """Yields show(done, total, text=""). A bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=_console, transient=True, disable=not (enabled and _console.is_terminal)
    ) as bar:
        task = bar.add_task(title, total=None, text="")

        def show(done: int, total: int, text: str = "") -> None:
            bar.update(task, completed=done, total=total, text=text)

        yield show


class Monitor:
    """Records of one run; epochs count from 1. `step` is where it starts, and `evaluated` whether that step's
    evaluation is done: what an earlier life recorded beyond is dropped."""

    def __init__(
        self, run_dir: Path, step: int, *, evaluated: bool, enabled: bool, wandb: WandbLog | None = None
    ) -> None:
        self.step = step
        self.enabled = enabled
        self._wandb = wandb
        if not enabled:
            return
        self._metrics_path = run_dir / "metrics.jsonl"

        def is_past(kind: str, at: int) -> bool:
            return at < step or (0 < at == step and (kind != "eval" or evaluated))

        keep_past(self._metrics_path, is_past)
        self._metrics = self._metrics_path.open("a")
        self._events = EventLog(run_dir / "tensorboard", is_past)

    def train(self, step: int, epoch: int, values: dict[str, float]) -> None:
        self._record("train", step, epoch, values)

    def eval(self, step: int, epoch: int, result: EvalResult, class_names: tuple[str, ...]) -> None:
        self._record("eval", step, epoch, result.values)
        if not self.enabled:
            return
        if len(class_names) <= MAX_DRAWN_CLASSES:
            picture = draw_confusion(result.confusion, class_names)
            self._events.add(summary.image("eval/confusion", picture, dataformats="CHW"), step)
        if result.scores is not None:
            # By the images and not by F1, so that the curves are of the same classes in every epoch.
            for label in np.argsort(result.classes.support, kind="stable")[:MAX_PR_CURVES]:
                positive, scores = result.scores.labels == label, result.scores.probabilities[:, label]
                tag = f"eval/pr_curve/{class_names[label]}"
                self._events.add(summary.pr_curve(tag, positive, scores), step)

    def inputs(self, step: int, images: torch.Tensor, spec: InputSpec) -> None:
        """The first images of a batch as the network sees them, brought back to 0..1 for the eye."""
        if not self.enabled:
            return
        from torchvision.utils import make_grid

        mean = torch.tensor(spec.mean)[:, None, None]
        std = torch.tensor(spec.std)[:, None, None]
        pixels = (images[:16].float().cpu() * std + mean).clamp(0, 1)
        self._events.add(summary.image("train/inputs", make_grid(pixels, nrow=4), dataformats="CHW"), step)

    def close(self) -> None:
        if self.enabled:
            self._metrics.close()
            self._events.close()
        if self._wandb is not None:
            self._wandb.close()

    def _record(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        if not self.enabled:
            return
        numbers = {name: known(value) for name, value in values.items()}
        self._metrics.write(json.dumps({"kind": kind, "step": step, "epoch": epoch, **numbers}) + "\n")
        self._metrics.flush()
        self.scalars(kind, step, values)

    def scalars(self, kind: str, step: int, values: dict[str, float]) -> None:
        """To TensorBoard, and to W&B where it is on; what is not finite is left out."""
        if not self.enabled:
            return
        finite = {f"{kind}/{name}": value for name, value in values.items() if known(value) is not None}
        for tag, value in finite.items():
            self._events.add(summary.scalar(tag, value), step)
        if self._wandb is not None:
            self._wandb.add(step, finite)


def draw_confusion(confusion: torch.Tensor, class_names: tuple[str, ...]) -> Any:
    """float [3, height, width] in 0..1: rows are labels, columns predictions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 3 + 0.35 * len(class_names)
    figure = Figure(figsize=(side, side), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    share = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    axes.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if len(class_names) <= 20:
        for row, col in torch.nonzero(confusion).tolist():
            colour = "white" if share[row, col] > 0.5 else "black"
            axes.text(
                col, row, str(int(confusion[row, col])), ha="center", va="center", color=colour, fontsize=8
            )
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.reshape(height, width, 4)[..., :3].permute(2, 0, 1).float() / 255


def keep_past(path: Path, is_past: Callable[[str, int], bool]) -> None:
    """Of the records of a .jsonl, by kind and step; a torn last line goes."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
            if is_past(record["kind"], record["step"]):
                kept.append(line + "\n")
        except ValueError:
            break
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
