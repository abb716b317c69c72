"""One side of the demo: an opened lane, and what it says of a picture."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.backends import open_runner
from deploy.bundle import Bundle
from deploy.demo.lanes import words
from deploy.demo.show import TOP, Answer, Guess, Lane
from deploy.errors import LabError
from deploy.preprocess import Tensor
from deploy.runner import Runner

_RECENT = 30  # latencies that the rate is told of


class Side:
    """A lane and its runner; `runner` is None, with the reason in `error`, where it could not be opened.

    Only the thread that classifies calls `answer` and `close`.
    """

    def __init__(self, bundle: Bundle, lane: Lane, runner: Runner | None, error: str | None = None) -> None:
        assert bundle.input is not None
        self.lane, self.error = lane, error
        self.note: str | None = None
        """What was tried before it, and why that could not be opened."""
        self.precision = (runner and runner.precision) or bundle.variant(lane.variant).precision
        self._names, self._output, self._runner = bundle.input.class_names, bundle.class_output, runner
        self._recent: deque[float] = deque(maxlen=_RECENT)

    @property
    def is_open(self) -> bool:
        return self._runner is not None

    def answer(self, tensor: Tensor) -> Answer:
        """tensor: float32 3 x size x size. What the model fails with is in the answer."""
        if self._runner is None:
            return self._failed(self.error)
        batch = self._runner.inputs[0].shape[0] or 1
        feed = {
            self._runner.inputs[0].name: np.ascontiguousarray(np.broadcast_to(tensor, (batch, *tensor.shape)))
        }
        try:
            began = time.perf_counter()
            outputs = self._runner.infer(feed)
            latency_ms = 1e3 * (time.perf_counter() - began)
        # Backends' own exceptions share no other base, and the other side goes on.
        except Exception as error:
            self._recent.clear()
            return self._failed(f"{words(self.lane)}: the model failed: {one_line(error)}")
        chances = probabilities(outputs[self._output or ""][0])
        if chances is None:
            return self._failed(f"{words(self.lane)}: the model gives values that are not finite")
        self.error = None
        self._recent.append(latency_ms)
        return Answer(self.lane, self.precision, top_guesses(chances, self._names), latency_ms)

    def rate(self) -> float | None:
        """Pictures a second that it could do alone, by the median of late; None before its first answer."""
        recent = list(self._recent)
        return 1e3 / max(median(recent), 1e-6) if recent else None

    def close(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.__exit__(None, None, None)

    def _failed(self, error: str | None) -> Answer:
        self.error = error
        return Answer(self.lane, self.precision, (), 0.0, error)


def open_side(bundle: Bundle, lane: Lane, threads: int | None) -> Side:
    """Raises LabError where the runner cannot be opened, whatever its library raises."""
    try:
        return Side(
            bundle,
            lane,
            open_runner(bundle, lane.variant, lane.backend, threads=threads, in_turn=True).__enter__(),
        )
    except LabError as error:
        raise LabError(f"{words(lane)}: {error}") from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise LabError(f"{words(lane)}: cannot be opened: {one_line(error)}") from error


def probabilities(row: NDArray[Any]) -> NDArray[np.float64] | None:
    """The softmax of logits, or the row as it is where the model has computed it already: all at least 0,
    with a sum of 1 to a thousandth, which logits are by no chance. None where one is not finite."""
    values = np.asarray(row, np.float64).ravel()
    if not np.isfinite(values).all():
        return None
    if values.min() >= 0 and abs(values.sum() - 1) < 1e-3:
        return values
    raised = np.exp(values - values.max())
    return np.asarray(raised / raised.sum())


def top_guesses(chances: NDArray[np.float64], names: Sequence[str]) -> tuple[Guess, ...]:
    """The TOP likeliest, likeliest first; one that has no name goes by its number."""
    best = np.argsort(-chances, kind="stable")[:TOP]
    return tuple(Guess(names[i] if i < len(names) else f"class {i}", float(chances[i])) for i in best)


def one_line(error: BaseException) -> str:
    """Its text without line breaks, short enough for a line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
