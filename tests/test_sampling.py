"""What an epoch holds of each class and image: a pure function of (seed, epoch), the same on any ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from configs.images import SamplingConfig
from configs.load import load
from configs.schema import TrainConfig
from data.index import Float64, Index, Int64
from data.plan import TrainPlan
from data.sampling import SHUFFLE, epoch_rows, sampling_lines
from deploy.errors import LabError
from tests.test_plan import AUGMENT, SPEC

KINDS = ("shuffle", "balanced", "weighted", "over", "under", "bootstrap")
SIZES = (60, 30, 7)


@cache
def sampling(*overrides: str) -> SamplingConfig:
    return load("train", TrainConfig, overrides).sampling


def index(weights: Float64 | None = None) -> Index:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), SIZES))
    n = len(labels)
    return Index(tuple(map(str, range(n))), labels, np.full((n, 2), 40), ("cat", "dog", "hen"), weights)


def per_class(rows: Int64) -> list[int]:
    counts: list[int] = np.bincount(index().labels[rows], minlength=3).tolist()
    return counts


def plan(config: SamplingConfig, rank: int = 0, world: int = 1, seed: int = 5) -> TrainPlan:
    return TrainPlan(
        index(), SPEC, AUGMENT, batch_size=6, accumulate=1, rank=rank, world=world, seed=seed, sampling=config
    )


def test_shuffle_is_the_permutation_that_it_always_was() -> None:
    generator = np.random.Generator(np.random.Philox(key=[5, 2], counter=[0, 0, 0, 0]))
    assert epoch_rows(SHUFFLE, index(), 5, 2).tolist() == list(range(97))
    steps = [plan(SHUFFLE).at(2 * 16 + step).rows for step in range(16)]
    assert np.concatenate(steps).tolist() == generator.permutation(97)[:96].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_as_long_as_the_first_and_a_pure_function(kind: str) -> None:
    config = sampling(f"sampling={kind}")
    epochs = [epoch_rows(config, index(), 1, epoch) for epoch in range(12)]
    assert {len(rows) for rows in epochs} == {{"over": 180, "under": 21}.get(kind, 97)}
    assert np.array_equal(epoch_rows(config, index(), 1, 7), epochs[7])
    assert all((np.diff(rows) >= 0).all() for rows in epochs)
    changes = {rows.tobytes() for rows in epochs}
    # Oversampling has the remainder of the hens to change: 60 is no multiple of 7.
    assert (len(changes) == 1) == (kind in ("shuffle", "bootstrap"))
    if kind != "shuffle":
        assert not np.array_equal(epoch_rows(config, index(), 2, 0), epochs[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_together_take_the_rows_of_one(kind: str, world: int) -> None:
    config = sampling(f"sampling={kind}")
    alone = plan(config)
    ranks = [plan(config, rank, world) for rank in range(world)]
    for position in (0, len(alone) + 1, 5 * len(alone)):
        dealt = np.concatenate([one.at(position).rows for one in ranks])
        assert dealt.tolist() == alone.at(position).rows.tolist()


@pytest.mark.parametrize(
    ("overrides", "shares"),
    [
        (["balanced"], [1, 1, 1]),
        (["weighted", "sampling.power=1"], [1, 1, 1]),
        (["weighted", "sampling.power=0"], SIZES),
        (["weighted"], np.sqrt(SIZES)),
        (["weighted", "sampling.power=0", "sampling.weights={cat: 1, dog: 4, hen: 0.5}"], [60, 120, 3.5]),
        (["weighted", "sampling.power=1", "sampling.weights={cat: 1, dog: 4, hen: 0.01}"], [1, 4, 0.01]),
    ],
)
def test_shares_are_right_in_every_epoch_and_exact_in_the_long_run(
    overrides: list[str], shares: Sequence[float]
) -> None:
    config = sampling(f"sampling={overrides[0]}", *overrides[1:])
    quotas = 97 * np.array(shares) / np.sum(shares)
    counts = np.array([per_class(epoch_rows(config, index(), 3, epoch)) for epoch in range(200)])
    assert (np.abs(counts - quotas) < 1).all()
    assert np.abs(counts.mean(axis=0) - quotas).max() < 0.02


@pytest.mark.parametrize("kind", ["balanced", "over", "under", "weighted"])
def test_no_image_is_used_twice_before_all_of_its_class_were_once(kind: str) -> None:
    config = sampling(f"sampling={kind}")
    used = np.zeros(97, np.int64)
    for epoch in range(30):
        rows = epoch_rows(config, index(), 0, epoch)
        used += np.bincount(rows, minlength=97)
        for counts in (np.bincount(rows, minlength=97), used):  # in the epoch, and in the run so far
            for label in range(3):
                mine = counts[index().labels == label]
                assert mine.max() - mine.min() <= 1


def test_over_and_under_have_every_class_alike() -> None:
    assert per_class(epoch_rows(sampling("sampling=over"), index(), 0, 4)) == [60, 60, 60]
    under = epoch_rows(sampling("sampling=under"), index(), 0, 4)
    assert per_class(under) == [7, 7, 7]
    assert len(set(under.tolist())) == 21


def test_a_bag_has_about_two_thirds_of_the_images() -> None:
    bags = [set(epoch_rows(sampling("sampling=bootstrap"), index(), seed, 0).tolist()) for seed in range(50)]
    assert abs(np.mean([len(bag) for bag in bags]) / 97 - (1 - 1 / np.e)) < 0.02


def test_images_are_drawn_in_proportion_to_their_own_weights() -> None:
    weights = np.random.default_rng(1).uniform(0, 4, 97)
    weights[:5] = 0.0
    config = sampling("sampling=weighted", "sampling.power=0")
    epochs = [epoch_rows(config, index(weights), 0, epoch) for epoch in range(400)]
    counts = np.mean([np.bincount(rows, minlength=97) for rows in epochs], axis=0)
    assert counts[:5].max() == 0
    assert np.abs(counts - 97 * weights / weights.sum()).max() < 0.05


def test_weights_are_taken_along_and_read_back(tmp_path: Path) -> None:
    images = index(np.linspace(0, 1, 97))
    images.take(np.array([96, 0])).save(tmp_path / "i.npz")
    read = Index.load(tmp_path / "i.npz").weights
    assert read is not None
    assert read.tolist() == [1.0, 0.0]
    index().save(tmp_path / "none.npz")
    assert Index.load(tmp_path / "none.npz").weights is None


def test_every_mistake_in_the_weights_is_named_at_once() -> None:
    own = np.where(index().labels == 2, 0.0, 1.0)
    config = sampling("sampling=weighted", "sampling.weights={cat: 1, hen: 1, horse: 1, cow: 2}")
    with pytest.raises(LabError) as caught:
        epoch_rows(config, index(own), 0, 0)
    for text in (
        "'cow' is no class",
        "'horse' is no class",
        "'dog' has no weight",
        "'hen' have the weight 0",
    ):
        assert text in str(caught.value)
    with pytest.raises(LabError, match=r"sampling\.weights\.cat: .*greater than 0"):
        sampling("sampling=weighted", "sampling.weights={cat: -1}")


def test_the_log_has_the_classes_before_and_after() -> None:
    assert sampling_lines(SHUFFLE, index(), 0) == []
    lines = sampling_lines(sampling("sampling=under"), index(), 0)
    assert lines[0].startswith("sampling=under: 21 images an epoch of the 97 there are, 21 different")
    assert lines[1:] == [
        "  cat: 60 -> 7 (7 different)",
        "  dog: 30 -> 7 (7 different)",
        "  hen: 7 -> 7 (7 different)",
    ]


def test_a_batch_beyond_the_epoch_of_the_sampling_is_refused() -> None:
    config = sampling("sampling=under")
    with pytest.raises(LabError, match=r"22 is more than the 21 .* sampling=under: use batch_size=21"):
        TrainPlan(
            index(), SPEC, AUGMENT, batch_size=22, accumulate=1, rank=0, world=1, seed=0, sampling=config
        )
