"""How far from what was expected a variant may be on another machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploy.bundle import Bundle
from deploy.verify import FLOAT_TOLERANCE, FP16_TOLERANCE, relative_error, tolerances
from tests.test_deploy_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("limits"))


def test_fp32_is_held_to_last_digits_and_int8_to_what_its_rounding_changed(bundle: Bundle) -> None:
    answers = bundle.answers()
    fp32, int8 = bundle.variants
    assert tolerances(bundle, fp32, answers) == {"logits": FLOAT_TOLERANCE}
    rounding = relative_error(answers["int8"]["logits"], answers["fp32"]["logits"])
    assert rounding > FLOAT_TOLERANCE
    assert tolerances(bundle, int8, answers) == {"logits": rounding}


def test_fp16_may_also_have_been_added_up_in_fp16(bundle: Bundle) -> None:
    answers = bundle.answers() | {"half": bundle.answers()["fp32"]}
    half = replace(bundle.variants[1], name="half", precision="fp16")
    assert tolerances(bundle, half, answers) == {"logits": FP16_TOLERANCE}
