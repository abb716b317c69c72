"""Queries that begin elsewhere than with arrays in host memory: where the device reads them, or at a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from deploy.bench_turns import Figure
from deploy.bundle import Bundle
from deploy.errors import LabError
from deploy.preprocess import load_image, preprocess
from deploy.runner import Feed, Runner
from deploy.trt import TensorRTRunner


def copies_note(backend: str) -> str | None:
    """Why there is nothing to measure without copies; None where there is."""
    if backend == "tensorrt":
        return None
    return f"without copies: {backend} reads the caller's array where it lies, so no copy can be left out"


def figures_in_place(name: str, runner: Runner, samples: Feed, batches: Sequence[int]) -> list[Figure]:
    """Latency at each batch of inputs that lie in the memory that the GPU reads; none on a CPU."""
    if not isinstance(runner, TensorRTRunner):
        return []

    def call(batch: int) -> Callable[[], object]:
        def query() -> object:
            return runner.infer(staged)

        # Every batch size lies in the same memory, so the last one's content is everyone's: no time depends
        # on it.
        staged = runner.staging(batch)
        for input_name, array in samples.items():
            np.copyto(staged[input_name], np.resize(array, staged[input_name].shape))
        return query

    return [Figure(name, "latency", batch, call(batch), inside="in place") for batch in batches]


def figures_of_images(bundle: Bundle, name: str, runner: Runner, batches: Sequence[int]) -> list[Figure]:
    """Latency at each batch from the bundle's sample files, in turn. Raises LabError where it has none."""
    spec, paths = bundle.input, bundle.sample_paths()
    if spec is None or not paths:
        raise LabError(
            f"{bundle.root}: its samples are tensors, nothing is preprocessed: leave out --with-preprocessing"
        )

    def call(batch: int) -> Callable[[], object]:
        files = cycle(paths)

        def query() -> object:
            chosen: list[Path] = list(islice(files, batch))
            images = np.stack([preprocess(load_image(file), spec) for file in chosen])
            return runner.infer({runner.inputs[0].name: images})

        return query

    return [Figure(name, "latency", batch, call(batch), inside="image") for batch in batches]
