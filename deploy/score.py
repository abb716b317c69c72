"""How right each variant is, and how near to the original, on tensors: batch by batch, for outputs of a
detector or an encoder are too large to be kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
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
class _Tally:
    count: int = 0
    labelled: int = 0
    right: int = 0
    same: int = 0
    noise: dict[str, float] = field(default_factory=dict)
    signal: dict[str, float] = field(default_factory=dict)

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
            wanted = array.astype(np.float64)
            self.noise[name] = self.noise.get(name, 0.0) + float(np.square(got[name] - wanted).sum())
            self.signal[name] = self.signal.get(name, 0.0) + float(np.square(wanted).sum())


def score(
    runners: Mapping[str, Runner],
    batches: Iterable[Tensors],
    class_output: str | None,
    reference: str | None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Accuracy]:
    """For each runner, over all samples: top-1 where there are labels and `class_output`; with a `reference`
    among the runners, the share of equal classes, and for each output its signal-to-noise ratio in dB.

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
        snr_db={name: ratio_db(tally.signal[name], noise) for name, noise in tally.noise.items()} or None,
    )


def ratio_db(signal: float, noise: float) -> float:
    """10 log10 of signal over noise, both sums of squares, within -300..300 dB; NaN counts as -300."""
    if math.isnan(noise) or (noise > 0 and signal == 0):
        return -MOST_DB
    if noise == 0:
        return MOST_DB
    return max(-MOST_DB, min(MOST_DB, 10 * math.log10(signal / noise)))
