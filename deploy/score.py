"""How right each variant is, and how near to the original, on tensors: batch by batch, for outputs of a
detector or an encoder are too large to be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.accuracy import answer
from deploy.results import Accuracy
from deploy.runner import Arrays, Runner
from deploy.tensors import Tensors

MOST_DB = 300.0
"""Of equal outputs: JSON knows no infinity. A float64 sum of squares tells no more than about this."""


@dataclass
class _Difference:
    """Of one output to the original's, by slices along :func:`part_axis`; sums of squares."""

    noise: NDArray[np.float64]
    signal: NDArray[np.float64]
    shares: NDArray[np.bool_]
    """Slices whose values in the original all lie in 0..1."""

    def plus(self, other: _Difference) -> _Difference:
        return _Difference(self.noise + other.noise, self.signal + other.signal, self.shares & other.shares)

    def worst_db(self) -> float:
        parts = [part for part in (self.shares, ~self.shares) if part.any()]
        return min(ratio_db(float(self.signal[p].sum()), float(self.noise[p].sum())) for p in parts)


@dataclass
class _Tally:
    count: int = 0
    labelled: int = 0
    right: int = 0
    same: int = 0
    differences: dict[str, _Difference] = field(default_factory=dict)

    def add_classes(
        self, got: NDArray[Any], labels: NDArray[np.int64] | None, reference: NDArray[Any] | None
    ) -> None:
        named = got.argmax(axis=1)
        if labels is not None:
            self.labelled += len(labels)
            self.right += int((named == labels).sum())
        if reference is not None:
            self.same += int((named == reference.argmax(axis=1)).sum())

    def add_difference(self, got: Arrays, reference: Arrays) -> None:
        for name, array in reference.items():
            found = _difference(got[name], array)
            before = self.differences.get(name)
            self.differences[name] = found if before is None else before.plus(found)


def part_axis(shape: Sequence[int]) -> int | None:
    """The shortest side but the batch, along which an output of three sides or more is cut into slices; None
    where it is not cut.

    A detector gives its boxes in pixels and its scores, from 0 to 1, in one tensor: in one ratio over both
    the scores would not be seen. So slices that hold shares only are judged apart from the others, but not
    one by one: of a class that is in no image a ratio tells nothing.
    """
    return 1 + int(np.argmin(shape[1:])) if len(shape) >= 3 else None


def _difference(got: NDArray[Any], reference: NDArray[Any]) -> _Difference:
    axis = part_axis(reference.shape)
    ours, wanted = (
        array.astype(np.float64).reshape(1, -1)
        if axis is None
        else np.moveaxis(array.astype(np.float64), axis, 0).reshape(array.shape[axis], -1)
        for array in (got, reference)
    )
    return _Difference(
        noise=np.square(ours - wanted).sum(axis=1),
        signal=np.square(wanted).sum(axis=1),
        shares=np.all((wanted >= 0) & (wanted <= 1), axis=1),
    )


def score(
    runners: Mapping[str, Runner],
    batches: Iterable[Tensors],
    class_output: str | None,
    reference: str | None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Accuracy]:
    """For each runner, over all samples: top-1 where there are labels and `class_output`; with a `reference`
    among the runners, the share of equal classes, and for each output the signal-to-noise ratio in dB of its
    worst part (:func:`part_axis`).

    advance: called with the number of samples done since the last call.
    """
    tallies = {name: _Tally() for name in runners}
    for batch in batches:
        answers = {name: answer(runner, batch.arrays) for name, runner in runners.items()}
        original = None if reference is None else answers[reference]
        for name, tally in tallies.items():
            tally.count += len(batch)
            if class_output is not None:
                tally.add_classes(
                    answers[name][class_output], batch.labels, original[class_output] if original else None
                )
            if original is not None:
                tally.add_difference(answers[name], original)
        advance(len(batch))
    return {name: _accuracy(tally, class_output, reference) for name, tally in tallies.items()}


def _accuracy(tally: _Tally, class_output: str | None, reference: str | None) -> Accuracy:
    classes = class_output is not None
    return Accuracy(
        top1=tally.right / tally.labelled if tally.labelled else None,
        num_images=tally.count,
        agreement_with_fp32=tally.same / tally.count if classes and reference is not None else None,
        snr_db={name: found.worst_db() for name, found in tally.differences.items()} or None,
    )


def ratio_db(signal: float, noise: float) -> float:
    """10 log10 of signal over noise, both sums of squares, within -300..300 dB; NaN counts as -300."""
    if math.isnan(noise) or (noise > 0 and signal == 0):
        return -MOST_DB
    if noise == 0:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise)))
