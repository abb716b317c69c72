"""The images that quantisation ranges are measured on: training images, seen as in evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from configs.images import DataConfig, LoaderConfig
from data.build import build_loader
from data.index import Index
from data.plan import EvalPlan
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.progress import progress

_BATCH = 32


def choose_images(train: Index, num_images: int, seed: int, *, balanced: bool = False) -> Index:
    """A random subset in which the classes have the shares that they have among the training images.

    `balanced`: as many of each class; a class that has fewer gives all, and the others make up for it.
    All of them where there are no more than `num_images`. Raises LabError where that is too few for
    `balanced` to hold each class.
    """
    classes = int(np.count_nonzero(np.bincount(train.labels)))
    if balanced and num_images < classes:
        raise LabError(
            f"{num_images} balanced images cannot hold each of the {classes} classes: take {classes} or more"
        )
    if num_images >= len(train):
        return train
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(train))
    by_class = shuffled[np.argsort(train.labels[shuffled], kind="stable")]
    if balanced:
        labels = train.labels[by_class]
        # The place of each image within its class: the first of every class come before the second of any.
        place = np.arange(len(labels)) - np.searchsorted(labels, labels)
        return train.take(np.sort(by_class[np.argsort(place, kind="stable")[:num_images]]))
    # Sorted by class and dealt out evenly, a class gets its share to within one image.
    return train.take(np.sort(by_class[np.linspace(0, len(train) - 1, num_images).round().astype(np.int64)]))


def image_batches(
    index: Index, spec: InputSpec, config: LoaderConfig, data: DataConfig | None = None, label: str = "images"
) -> Iterator[npt.NDArray[np.float32]]:
    """float32 [n, 3, size, size] of every image once, prepared for evaluation by the loader of the config.

    `data` as in `build_loader`; `label` names the progress bar.
    """
    for images, _ in labelled_batches(index, spec, config, data, label):
        yield images.numpy()


def labelled_batches(
    index: Index, spec: InputSpec, config: LoaderConfig, data: DataConfig | None = None, label: str = "images"
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Likewise as tensors, with the labels int64 [n]."""
    plan = EvalPlan(index, spec, batch_size=min(_BATCH, len(index)), rank=0, world=1)
    loader = build_loader(config, plan, spec, torch.device("cpu"), data=data)
    try:
        with progress(label, len(index)) as advance:
            for images, labels in loader:
                real = labels >= 0
                yield images[real], labels[real]
                advance(int(real.sum()))
    finally:
        loader.close()
