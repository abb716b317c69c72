"""How far one network's logits are from another's, on numbers that a hand can check."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pytest

from deploy.errors import LabError
from optimize.fidelity import compare_logits

IMAGES = [np.zeros((2, 3, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.float32)]
RIGHT = np.array([3.0, 4.0])


def test_the_noise_is_the_difference_over_all_images() -> None:
    # Of three images one has a logit too many by 5 where the signal's square is 25 each: 25 / 75.
    seen = []

    def other(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        seen.append(len(batch))
        logits = np.tile(RIGHT, (len(batch), 1))
        if len(batch) == 1:
            logits[0, 0] += 5
        return logits

    found = compare_logits(lambda batch: np.tile(RIGHT, (len(batch), 1)), other, IMAGES)
    assert seen == [2, 1]
    assert found.relative_error == pytest.approx(3**-0.5)
    assert found.snr_db == pytest.approx(4.771, abs=1e-3)
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert found.num_images == 3


def test_a_record_of_equal_networks_is_json() -> None:
    same = compare_logits(lambda b: np.ones((len(b), 2)), lambda b: np.ones((len(b), 2)), IMAGES)
    assert json.loads(json.dumps(same.as_record(), allow_nan=False)) == {
        "relative_error": 0.0, "top1_agreement": 1.0, "num_images": 3, "snr_db": 300.0,
    }  # fmt: skip


def test_no_images_are_refused() -> None:
    with pytest.raises(LabError, match="0 images, at least 1 is needed"):
        compare_logits(lambda b: b, lambda b: b, [])
