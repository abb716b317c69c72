"""Both loaders carry out a plan alike, prepare an image as the device does, and go on where they stopped."""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.images import LoaderConfig
from data.build import build_loader
from data.check import check_images
from data.index import Index
from data.loader import Batch, Loader
from data.plan import IGNORE, EvalPlan, Plan, TrainPlan
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.preprocess import load_image, preprocess
from tests.augmentation import augmentation
from tests.pictures import save

SPEC = InputSpec(64, 72, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), ("a", "b"))
AUGMENT = augmentation(min_scale=0.3, max_ratio=1.3, flip=True)
CPU = torch.device("cpu")
NAMES = ("dali", "torch")
both = pytest.mark.parametrize("name", NAMES)

Pixels = NDArray[np.float64]
Open = Callable[..., Loader]


def checked_index(paths: list[Path], cache_dir: Path) -> Index:
    checked = check_images([str(path) for path in paths], cache_dir, 1, lambda number: None)
    assert [c for c in checked if c.broken] == []
    shapes = np.array([(c.height, c.width) for c in checked], np.int64)
    return Index(tuple(c.path for c in checked), np.arange(len(paths)) % 2, shapes, SPEC.class_names)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Every kind of file that is read as it is, and two that are converted."""
    at = tmp_path_factory.mktemp("images")
    paths = [
        save(at / "landscape.jpg", 375, 500),
        save(at / "portrait, odd.jpg", 333, 201, seed=1),
        save(at / "smaller.jpg", 41, 57, seed=2),
        save(at / "just_the_size.jpg", 72, 72, seed=3),
        save(at / "grey.jpg", 130, 99, mode="L", seed=4),
        save(at / "turned.jpg", 90, 160, seed=5, orientation=6),
        save(at / "upside_down.jpg", 101, 160, seed=6, orientation=3),
        save(at / "mirrored.jpg", 90, 161, seed=7, orientation=5),
        save(at / "Größe 8.png", 8, 8, seed=8),
        save(at / "grey.png", 77, 150, mode="L", seed=9),
        save(at / "cmyk.jpg", 120, 88, mode="CMYK", seed=10),
        save(at / "turned_cmyk.jpg", 120, 88, mode="CMYK", seed=11, orientation=8),
    ]
    return checked_index(paths, at / "cache")


@pytest.fixture
def open_loader() -> Iterator[Open]:
    """`build_loader` on the CPU; what it opened is closed after the test."""
    opened: list[Loader] = []

    def opener(name: str, plan: Plan, *, channels_last: bool = False) -> Loader:
        config = LoaderConfig(name=name, threads=1, prefetch=2)  # type: ignore[arg-type]
        opened.append(build_loader(config, plan, SPEC, CPU, channels_last=channels_last))
        return opened[-1]

    yield opener
    for loader in opened:
        loader.close()
    gc.collect()  # a dead pipeline of DALI must not be collected in a worker that is forked later


def train_plan(index: Index, seed: int = 0) -> TrainPlan:
    return TrainPlan(index, SPEC, AUGMENT, batch_size=4, accumulate=1, rank=0, world=1, seed=seed)


def eval_plan(index: Index) -> EvalPlan:
    return EvalPlan(index, SPEC, batch_size=5, rank=0, world=1)


def levels(images: torch.Tensor) -> Pixels:
    """Normalised pixels as 0..255, so that a difference has a meaning."""
    std, mean = (np.array(v).reshape(3, 1, 1) for v in (SPEC.std, SPEC.mean))
    pixels: Pixels = (images.numpy().astype(np.float64) * std + mean) * 255
    return pixels


def by_hand(plan: Plan, position: int) -> Pixels:
    """A training batch, cut, resized and mirrored by Pillow."""
    batch = plan.at(position)
    images = []
    for row, (top, left, height, width), flip in zip(batch.rows, batch.windows, batch.flips, strict=True):
        window = load_image(plan.index.paths[row])[top : top + height, left : left + width]
        image = np.asarray(Image.fromarray(window).resize((SPEC.size, SPEC.size), Image.Resampling.BILINEAR))
        images.append(image[:, ::-1] if flip else image)
    return np.asarray(np.stack(images).transpose(0, 3, 1, 2), np.float64)


def assert_equal(got: list[Batch], expected: list[Batch]) -> None:
    """Bit for bit."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)


@both
def test_evaluation_prepares_an_image_as_the_device_does(index: Index, open_loader: Open, name: str) -> None:
    batches = list(open_loader(name, eval_plan(index)))
    images = torch.cat([batch.images[batch.labels != IGNORE] for batch in batches])
    expected = np.stack([preprocess(load_image(path), SPEC) for path in index.paths])
    assert np.abs(levels(images) - levels(torch.from_numpy(expected))).max() < 0.01


def test_dali_and_torch_evaluate_alike(index: Index, open_loader: Open) -> None:
    one, other = (list(open_loader(name, eval_plan(index))) for name in NAMES)
    assert [batch.labels.tolist() for batch in one] == [batch.labels.tolist() for batch in other]
    for a, b in zip(one, other, strict=True):
        assert np.abs(levels(a.images) - levels(b.images)).max() < 0.01


@both
def test_training_cuts_resizes_and_mirrors_as_planned(index: Index, open_loader: Open, name: str) -> None:
    plan = train_plan(index)
    assert any(plan.at(position).flips.any() for position in range(len(plan)))
    for position, batch in enumerate(open_loader(name, plan)):
        assert batch.labels.tolist() == plan.at(position).labels.tolist()
        difference = np.abs(levels(batch.images) - by_hand(plan, position))
        assert (
            float(np.max(np.mean(difference, axis=(1, 2, 3)))) < 1.5
        )  # filters and rounding differ by decoder


@both
def test_a_batch_has_the_types_and_labels_of_the_contract(index: Index, open_loader: Open, name: str) -> None:
    batches = list(open_loader(name, eval_plan(index)))
    for batch in batches:
        assert (batch.images.dtype, batch.images.shape) == (torch.float32, (5, 3, 64, 64))
        assert (batch.labels.dtype, batch.labels.shape) == (torch.int64, (5,))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [*index.labels, *[IGNORE] * 3]


@both
def test_channels_last_changes_the_layout_and_nothing_else(
    index: Index, open_loader: Open, name: str
) -> None:
    plain = next(iter(open_loader(name, eval_plan(index)))).images
    last = next(iter(open_loader(name, eval_plan(index), channels_last=True))).images
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@both
def test_a_batch_that_is_kept_is_not_written_over(index: Index, open_loader: Open, name: str) -> None:
    loader = open_loader(name, train_plan(index))
    kept = [*loader, *loader]
    copies = [Batch(batch.images.clone(), batch.labels.clone()) for batch in kept]
    for _ in range(3):
        list(loader)
    assert_equal(kept, copies)


@both
def test_each_iteration_is_one_epoch(index: Index, open_loader: Open, name: str) -> None:
    plan = train_plan(index)
    loader = open_loader(name, plan)
    assert len(loader) == len(plan) == 3
    for epoch in range(3):
        labels = [batch.labels.tolist() for batch in loader]
        assert labels == [plan.at(3 * epoch + step).labels.tolist() for step in range(3)]


@both
@pytest.mark.parametrize("taken", [0, 2, 3, 4])
def test_a_new_loader_goes_on_bit_for_bit(index: Index, open_loader: Open, name: str, taken: int) -> None:
    straight = open_loader(name, train_plan(index))
    expected = [batch for _ in range(3) for batch in straight]

    stopped = open_loader(name, train_plan(index))
    for _ in range(taken):
        next(iter(stopped))
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = open_loader(name, train_plan(index))
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    rest = list(resumed)
    assert len(rest) == 3 - taken % 3
    assert_equal([*rest, *resumed], expected[taken : taken + len(rest) + 3])


@both
def test_a_running_loader_can_be_set_back(index: Index, open_loader: Open, name: str) -> None:
    loader = open_loader(name, train_plan(index))
    start = loader.state_dict()
    first = list(loader)
    loader.load_state_dict(start)
    assert_equal(list(loader), first)


@both
def test_leaving_an_epoch_loses_no_batch(index: Index, open_loader: Open, name: str) -> None:
    expected = list(open_loader(name, train_plan(index)))
    loader = open_loader(name, train_plan(index))
    for batch in loader:
        left = [batch]
        break
    assert_equal([*left, *loader], expected)


@both
def test_a_closed_loader_goes_on(index: Index, open_loader: Open, name: str) -> None:
    expected = list(open_loader(name, train_plan(index)))
    loader = open_loader(name, train_plan(index))
    first = next(iter(loader))
    loader.close()
    assert_equal([first, *loader], expected)


def test_closing_ends_the_worker_processes(index: Index, open_loader: Open) -> None:
    loader = open_loader("torch", train_plan(index))
    next(iter(loader))
    assert multiprocessing.active_children()
    loader.close()
    assert not multiprocessing.active_children()


@both
def test_loading_leaves_the_random_state_alone(index: Index, open_loader: Open, name: str) -> None:
    before = torch.random.get_rng_state()
    list(open_loader(name, train_plan(index)))
    assert torch.equal(torch.random.get_rng_state(), before)


@both
def test_a_state_of_an_epoch_of_another_length_is_refused(index: Index, open_loader: Open, name: str) -> None:
    state = open_loader(name, train_plan(index)).state_dict()
    other = open_loader(
        name, TrainPlan(index, SPEC, AUGMENT, batch_size=6, accumulate=1, rank=0, world=1, seed=0)
    )
    with pytest.raises(LabError, match=r"epoch of 3 batches, but this data makes 2: .*batch_size"):
        other.load_state_dict(state)


@both
@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_file_lost_after_the_check_is_named(
    tmp_path: Path, open_loader: Open, name: str, damage: str
) -> None:
    paths = [save(tmp_path / f"{n}.jpg", 60, 60, seed=n) for n in range(8)]
    loader = open_loader(name, eval_plan(checked_index(paths, tmp_path / "cache")))
    if damage == "gone":
        paths[6].unlink()
    else:
        paths[6].write_bytes(paths[6].read_bytes()[:60])
    with pytest.raises(LabError) as caught:
        list(loader)
    message = str(caught.value)
    assert message.count(".jpg") == 1
    assert f"{paths[6]}: " in message
    assert "start again" in message
    assert "Traceback" not in message


def test_without_dali_the_other_loader_is_proposed(
    index: Index, open_loader: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.delitem(sys.modules, "data.dali_stream", raising=False)
    with pytest.raises(LabError, match=r"pip install nvidia-dali\S+, or use loader=torch"):
        open_loader("dali", eval_plan(index))
