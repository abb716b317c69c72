"""What is drawn for an image, and that DALI and torch carry it out alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import RandAugment

from configs.images import ErasingConfig, LoaderConfig, ProgressiveConfig, RandAugmentConfig
from configs.load import load
from configs.schema import TrainConfig
from data.augment import OPS, random_erasing, random_ops, training_size
from data.build import build_loader
from data.index import Index
from data.loader import Loader
from data.plan import BatchPlan, EvalPlan, Plan, TrainPlan
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from tests.augmentation import augmentation
from tests.pictures import save
from tests.test_plan import as_rows

SPEC = InputSpec(64, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ("a", "b"))
NAMES = ("dali", "torch")
N = 8
Open = Callable[[str, Plan], Loader]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Images of the network's size, so that both loaders begin with the same levels."""
    at = tmp_path_factory.mktemp("images")
    paths = [str(save(at / f"{n}.png", 64, 64, seed=n)) for n in range(N)]
    return Index(tuple(paths), np.arange(N) % 2, np.full((N, 2), 64), SPEC.class_names)


@pytest.fixture
def open_loader() -> Iterator[Open]:
    opened: list[Loader] = []

    def opener(name: str, plan: Plan) -> Loader:
        config = LoaderConfig(name=name, threads=1, prefetch=2)  # type: ignore[arg-type]
        opened.append(build_loader(config, plan, SPEC, torch.device("cpu")))
        return opened[-1]

    yield opener
    for loader in opened:
        loader.close()
    gc.collect()


def train_plan(
    index: Index,
    *,
    num_ops: int = 0,
    magnitude: int = 9,
    erasing: float = 0.0,
    flip: bool = False,
    progressive: ProgressiveConfig | None = None,
    rank: int = 0,
    world: int = 1,
) -> TrainPlan:
    augment = augmentation(1.0, 1.0, flip, num_ops=num_ops, magnitude=magnitude, erasing=erasing)
    return TrainPlan(
        index,
        SPEC,
        augment,
        batch_size=N,
        accumulate=1,
        rank=rank,
        world=world,
        seed=0,
        progressive=progressive,
    )


class OneOp:
    """A plan that gives every image the same operation."""

    crop_first, num_ops, erases = True, 1, False

    def __init__(self, plan: TrainPlan, name: str, parameter: float) -> None:
        self.index, self.batch_size = plan.index, plan.batch_size
        self._plan, self._op, self._parameter = plan, OPS.index(name), parameter

    def __len__(self) -> int:
        return len(self._plan)

    def at(self, position: int) -> BatchPlan:
        ops, parameters = np.full((N, 1), self._op), np.full((N, 1), self._parameter)
        return replace(self._plan.at(position), ops=ops, parameters=parameters)


def levels(images: torch.Tensor) -> torch.Tensor:
    std, mean = (torch.tensor(v).reshape(3, 1, 1) for v in (SPEC.std, SPEC.mean))
    return (images * std + mean) * 255


EXACT, ROUNDED, FILTERED = 0.01, 1.01, 255.0
"""Greatest difference of a pixel, in levels."""


@pytest.mark.parametrize(
    ("name", "parameter", "most", "mean"),
    [
        ("identity", 0.0, EXACT, EXACT),
        ("translate_x", -13.0, EXACT, EXACT),
        ("translate_y", 7.0, EXACT, EXACT),
        ("shear_x", 0.21, FILTERED, 1.0),
        ("shear_y", -0.13, FILTERED, 1.0),
        ("rotate", 17.0, FILTERED, 1.0),
        ("rotate", -30.0, FILTERED, 1.0),
        ("brightness", 0.27, EXACT, EXACT),
        ("brightness", -0.63, EXACT, EXACT),
        ("color", 0.5, 3.0, 1.0),
        ("color", -0.9, 3.0, 1.0),
        ("contrast", 0.45, 2.01, 1.0),
        ("contrast", -0.45, 2.01, 1.0),
        ("sharpness", 0.9, FILTERED, 2.0),
        ("sharpness", -0.9, FILTERED, 2.0),
        ("posterize", 4.0, EXACT, EXACT),
        ("posterize", 7.0, EXACT, EXACT),
        ("solarize", 178.5, EXACT, EXACT),
        ("solarize", 255.0, EXACT, EXACT),
        ("autocontrast", 0.0, ROUNDED, 0.5),
        ("equalize", 0.0, 8.0, 2.0),
    ],
)
def test_dali_and_torch_apply_an_operation_alike(
    index: Index, open_loader: Open, name: str, parameter: float, most: float, mean: float
) -> None:
    plan = OneOp(train_plan(index), name, parameter)
    one, other = (levels(next(iter(open_loader(loader, plan))).images) for loader in NAMES)
    difference = (one - other).abs()
    assert difference.max() < most
    assert difference.mean() < mean
    plain = levels(next(iter(open_loader("torch", train_plan(index)))).images)
    assert ((other - plain).abs().mean() < 0.01) == (name == "identity")


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_parameters_are_torchvisions(magnitude: int) -> None:
    space = RandAugment(magnitude=magnitude)._AUGMENTATION_SPACE
    ops, parameters = random_ops(np.random.default_rng(0), 4000, RandAugmentConfig(2, magnitude), 224)
    assert np.bincount(ops.ravel()).min() > 0.8 * 8000 / len(OPS)
    for place, (name, (magnitudes, signed)) in enumerate(space.items()):
        assert OPS[place] == {"ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x",
            "TranslateY": "translate_y"}.get(name, name.lower())  # fmt: skip
        found = np.unique(parameters[ops == place])
        table = magnitudes(31, 224, 224)
        expected = 0.0 if table is None else float(table[magnitude])
        if name.startswith("Translate"):
            expected = int(expected)
        if name == "Solarize":
            expected *= 255
        both = {-expected, expected} if signed else {expected}
        assert np.allclose(found, sorted(both), atol=1e-4)


def test_drawn_operations_change_images_alike_in_both_loaders(index: Index, open_loader: Open) -> None:
    plan = train_plan(index, num_ops=2, flip=True, erasing=0.5)
    for position, (one, other) in enumerate(
        zip(open_loader("dali", plan), open_loader("torch", plan), strict=True)
    ):
        assert torch.equal(one.labels, other.labels)
        assert (levels(one.images) - levels(other.images)).abs().mean() < 3
        batch = plan.at(position)
        assert batch.erased.any()
        for got in (one, other):
            for image, (top, left, height, width) in zip(got.images, batch.erased.tolist(), strict=True):
                assert not image[:, top : top + height, left : left + width].any()
                assert int((image == 0).all(dim=0).sum()) == height * width


def test_erased_boxes_keep_their_bounds() -> None:
    config = ErasingConfig(0.25, 0.02, 0.33)
    boxes = random_erasing(np.random.default_rng(0), 8000, config, 224)
    drawn = boxes[boxes[:, 2] > 0]
    assert abs(len(drawn) / 8000 - 0.25) < 0.02
    assert not boxes[boxes[:, 2] == 0].any()
    top, left, height, width = drawn.T
    assert (top >= 0).all() and (left >= 0).all()  # noqa: PT018
    assert (top + height <= 224).all() and (left + width <= 224).all()  # noqa: PT018
    area = height * width / 224**2
    assert 0.019 < area.min() < 0.03 and 0.30 < area.max() < 0.335  # noqa: PT018
    assert 0.29 < (height / width).min() < 0.33 and 3.0 < (height / width).max() < 3.4  # noqa: PT018


def test_options_that_are_turned_on_leave_the_windows_and_flips_alone(index: Index) -> None:
    plain = train_plan(index, flip=True).at(3)
    full = train_plan(index, flip=True, num_ops=2, erasing=1.0).at(3)
    for name in ("rows", "labels", "windows", "resized", "flips"):
        assert np.array_equal(getattr(plain, name), getattr(full, name))
    one = train_plan(index, erasing=1.0).at(3)
    assert np.array_equal(one.erased, full.erased)
    assert plain.ops.shape == (N, 0)
    assert not plain.erased.any()
    assert EvalPlan(index, SPEC, batch_size=4, rank=0, world=1).at(0).ops.shape == (4, 0)


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_draw_what_one_draws(index: Index, world: int) -> None:
    growing = ProgressiveConfig(32, 4)
    alone = train_plan(index, num_ops=2, erasing=0.5, progressive=growing)
    ranks = [
        train_plan(index, num_ops=2, erasing=0.5, progressive=growing, rank=rank, world=world)
        for rank in range(world)
    ]
    for position in range(6):
        assert [row for plan in ranks for row in as_rows(plan.at(position))] == as_rows(alone.at(position))


def test_the_training_size_grows_in_steps_of_32() -> None:
    sizes = [training_size(ProgressiveConfig(128, 8), 224, epoch) for epoch in range(10)]
    assert sizes == [128, 128, 128, 160, 160, 160, 192, 192, 224, 224]
    assert training_size(ProgressiveConfig(128, 0), 64, 0) == 64


@pytest.mark.parametrize("name", NAMES)
def test_images_grow_with_the_epochs_and_a_resumed_loader_goes_on(
    index: Index, open_loader: Open, name: str
) -> None:
    plan = train_plan(index, num_ops=1, erasing=1.0, progressive=ProgressiveConfig(32, 2))
    loader = open_loader(name, plan)
    batches = [batch for _ in range(3) for batch in loader]
    assert [batch.images.shape[2:] for batch in batches] == [(32, 32), (32, 32), (64, 64)]
    resumed = open_loader(name, plan)
    resumed.load_state_dict({"position": 1, "num_steps": len(plan)})
    for batch in batches[1:]:
        assert torch.equal(next(iter(resumed)).images, batch.images)


def test_a_start_above_the_size_and_areas_out_of_order_are_refused() -> None:
    with pytest.raises(LabError) as caught:
        load("train", TrainConfig, ["data.input.progressive.epochs=3", "data.augment.erasing.min_area=0.5"])
    assert "progressive.start_size 128 must be at most size 32" in str(caught.value)
    assert "min_area 0.5 must be at most max_area 0.33" in str(caught.value)
