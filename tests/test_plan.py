"""What a batch holds is arithmetic on (seed, epoch, step), whatever the number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from configs.images import AugmentConfig
from data.index import Index, Int64
from data.plan import IGNORE, BatchPlan, EvalPlan, Plan, TrainPlan, random_windows
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from tests.augmentation import augmentation

SPEC = InputSpec(32, 40, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), ("a", "b", "c"))
AUGMENT = augmentation(min_scale=0.2, max_ratio=1.5, flip=True)


def index(n: int) -> Index:
    rng = np.random.default_rng(n)
    return Index(
        tuple(f"{row}.jpg" for row in range(n)),
        rng.integers(0, 3, n),
        rng.integers(1, 900, (n, 2)),
        ("a", "b", "c"),
    )


def train_plan(
    n: int = 100,
    *,
    batch_size: int = 16,
    accumulate: int = 1,
    rank: int = 0,
    world: int = 1,
    seed: int = 3,
    augment: AugmentConfig = AUGMENT,
) -> TrainPlan:
    return TrainPlan(
        index(n),
        SPEC,
        augment,
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        world=world,
        seed=seed,
    )


def rows_of_epoch(plan: Plan, epoch: int) -> list[int]:
    steps = range(epoch * len(plan), (epoch + 1) * len(plan))
    return [row for step in steps for row in plan.at(step).rows.tolist()]


def as_rows(batch: BatchPlan) -> list[list[int]]:
    """One line an image: everything that a loader is told of it."""
    columns = (
        batch.rows,
        batch.labels,
        batch.windows,
        batch.resized,
        batch.flips,
        batch.ops,
        batch.parameters,
        batch.erased,
    )
    table: list[list[int]] = np.column_stack(columns).tolist()
    return table


@pytest.mark.parametrize("n", [96, 100, 111])
def test_an_epoch_has_no_image_twice_and_leaves_out_less_than_a_batch(n: int) -> None:
    rows = rows_of_epoch(train_plan(n), 2)
    assert len(rows) == len(set(rows)) == n // 16 * 16
    assert set(rows) <= set(range(n))


def test_each_epoch_has_an_order_of_its_own() -> None:
    plan = train_plan()
    orders = [rows_of_epoch(plan, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # The tail that is left out changes too, so that every image has its turn.
    assert len({frozenset(order) for order in orders}) == 3


def test_the_seed_decides_the_order_the_windows_and_the_flips() -> None:
    assert as_rows(train_plan(seed=7).at(4)) == as_rows(train_plan(seed=7).at(4))
    one, other = train_plan(seed=7).at(0), train_plan(seed=8).at(0)
    assert one.rows.tolist() != other.rows.tolist()
    assert one.windows.tolist() != other.windows.tolist()
    assert one.flips.tolist() != other.flips.tolist()


def test_each_step_draws_for_itself() -> None:
    plan = train_plan()
    draws = {tuple(plan.at(position).flips.tolist()) for position in range(3 * len(plan))}
    assert len(draws) == 3 * len(plan)


def test_labels_and_windows_belong_to_their_images() -> None:
    plan = train_plan(n=400, batch_size=200)
    batch = plan.at(1)
    assert batch.labels.tolist() == plan.index.labels[batch.rows].tolist()
    assert_inside(batch.windows, plan.index.shapes[batch.rows])
    assert batch.resized.tolist() == [[32, 32]] * 200


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_the_same_images_windows_and_flips_on_any_number_of_ranks(
    world: int, accumulate: int
) -> None:
    alone = train_plan(accumulate=accumulate)
    ranks = [train_plan(accumulate=accumulate, rank=rank, world=world) for rank in range(world)]
    assert {len(plan) for plan in ranks} == {len(alone)} == {100 // 16 * accumulate}
    for position in range(2 * len(alone)):
        dealt = [row for plan in ranks for row in as_rows(plan.at(position))]
        assert dealt == as_rows(alone.at(position))


def test_accumulation_takes_the_same_images_for_an_optimiser_step() -> None:
    whole, halves = train_plan(), train_plan(accumulate=2)
    both = [*halves.at(6).rows, *halves.at(7).rows]
    assert both == whole.at(3).rows.tolist()


def test_any_position_is_reached_without_those_before_it() -> None:
    walked = train_plan()
    in_order = [as_rows(walked.at(position)) for position in range(3 * len(walked))]
    for position in (17, 0, 9, 16):
        assert as_rows(train_plan().at(position)) == in_order[position]
        assert as_rows(walked.at(position)) == in_order[position]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 24, 25, 40, 41])
def test_evaluation_deals_every_image_to_one_rank_once(world: int, n: int) -> None:
    images = index(n)
    plans = [EvalPlan(images, SPEC, batch_size=4, rank=rank, world=world) for rank in range(world)]
    steps = len(plans[0])
    assert {len(plan) for plan in plans} == {steps}
    assert steps == -(-n // (4 * world)), "no step may hold padding only"
    batches = [plan.at(step) for plan in plans for step in range(steps)]
    assert {len(batch.rows) for batch in batches} == {4}
    dealt = [
        (row, label)
        for batch in batches
        for row, label in zip(batch.rows, batch.labels, strict=True)
        if label != IGNORE
    ]
    assert sorted(dealt) == list(enumerate(images.labels))


def test_evaluation_is_the_same_in_every_epoch_and_follows_the_spec() -> None:
    plan = EvalPlan(index(30), SPEC, batch_size=30, rank=0, world=1)
    batch = plan.at(0)
    assert as_rows(plan.at(5)) == as_rows(batch)
    assert not batch.flips.any()
    for row, resized, window in zip(batch.rows, batch.resized, batch.windows, strict=True):
        height, width = plan.index.shapes[row].tolist()
        assert tuple(resized) == SPEC.resized_shape(height, width)
        assert tuple(window) == (*SPEC.crop_offset(*resized.tolist()), 32, 32)


SHAPES = [(375, 500), (1, 1), (1, 300), (300, 1), (2, 2), (1, 5000), (5000, 1), (64, 64), (3000, 4000)]


def assert_inside(windows: Int64, shapes: Int64) -> None:
    top, left, height, width = windows.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= shapes[:, 0]).all()
    assert (left + width <= shapes[:, 1]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("min_scale", "max_ratio"), [(0.08, 4 / 3), (1.0, 1.0), (0.001, 3.0), (0.6, 1.2)])
def test_windows_stay_inside_their_images(shape: tuple[int, int], min_scale: float, max_ratio: float) -> None:
    shapes = np.tile(np.array(shape, np.int64), (500, 1))
    rng = np.random.default_rng(0)
    assert_inside(random_windows(rng, shapes, augmentation(min_scale, max_ratio, True)), shapes)


def test_windows_keep_the_bounds_of_area_and_ratio_and_use_all_of_both() -> None:
    shapes = np.tile(np.array((1500, 2000), np.int64), (4000, 1))
    windows = random_windows(np.random.default_rng(0), shapes, augmentation(0.08, 4 / 3, True))
    top, left, height, width = windows.T
    share = height * width / (1500 * 2000)
    ratio = width / height
    slack = 0.01  # of the rounding to whole px
    assert 0.08 - slack < share.min() < 0.09
    assert 0.97 < share.max() <= 1
    assert 3 / 4 - slack < ratio.min() < 0.77
    assert 1.30 < ratio.max() < 4 / 3 + slack
    assert abs(np.median(ratio) - 1) < 0.05
    # Anywhere in the image, its edges included.
    for place in (top / (1500 - height + 1e-9), left / (2000 - width + 1e-9)):
        assert np.abs(np.quantile(place, [0, 0.5, 1]) - [0, 0.5, 1]).max() < 0.05


@pytest.mark.parametrize(("shape", "expected"), [((100, 5000), (100, 150)), ((5000, 100), (150, 100))])
def test_a_strip_too_thin_for_any_window_gives_the_largest_centred_one(
    shape: tuple[int, int], expected: tuple[int, int]
) -> None:
    augment = augmentation(min_scale=0.9, max_ratio=1.5, flip=False)
    (window,) = random_windows(np.random.default_rng(0), np.array([shape], np.int64), augment).tolist()
    top, left, *size = window
    assert tuple(size) == expected
    assert (top, left) == ((shape[0] - size[0]) // 2, (shape[1] - size[1]) // 2)


def test_the_whole_image_is_kept_where_the_crop_is_off() -> None:
    augment = augmentation(min_scale=1.0, max_ratio=1.0, flip=False)
    plan = train_plan(augment=augment)
    square = np.array([(64, 64)], np.int64)
    assert random_windows(np.random.default_rng(0), square, augment).tolist() == [[0, 0, 64, 64]]
    assert not any(plan.at(position).flips.any() for position in range(len(plan)))


def test_half_of_the_images_are_flipped() -> None:
    flips = train_plan(n=2000, batch_size=2000).at(0).flips
    assert 0.45 < flips.mean() < 0.55


@pytest.mark.parametrize(
    ("batch_size", "world", "accumulate", "expected"),
    [
        (16, 3, 1, ["batch_size 16", "3 rank(s)", "use 15 or 18"]),
        (16, 2, 3, ["2 rank(s) x 3 accumulated", "use 12 or 18"]),
        (2, 4, 1, ["batch_size 2 ", "use 4,"]),
        (256, 64, 2, ["100 training images", "use fewer processes"]),
        (128, 1, 1, ["batch_size 128", "100 training images", "use batch_size=100 or less"]),
    ],
)
def test_a_batch_size_that_cannot_be_dealt_is_refused(
    batch_size: int, world: int, accumulate: int, expected: list[str]
) -> None:
    with pytest.raises(LabError) as caught:
        train_plan(batch_size=batch_size, world=world, accumulate=accumulate)
    assert [text for text in expected if text not in str(caught.value)] == []


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (3, 1), (5, 2)])
def test_the_batch_size_that_is_proposed_is_accepted(world: int, accumulate: int) -> None:
    with pytest.raises(LabError) as caught:
        train_plan(batch_size=3000, world=world, accumulate=accumulate)
    proposed = int(str(caught.value).rsplit("batch_size=", 1)[1].split()[0])
    assert len(train_plan(batch_size=proposed, world=world, accumulate=accumulate)) >= accumulate
