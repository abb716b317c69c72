"""`python -m scripts.bench_loaders`: our DALI loader against torch's, ours and stock, and bare DALI.

Training batches of drawn 500 x 375 JPEGs at 224 px, decoded, cropped at random, flipped and normalised, with
as many threads as worker processes. They take turns, so that a machine that changes its speed changes it
for all; the ratios are of the same round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from configs.load import load
from configs.schema import TrainConfig
from data.build import build_loader
from data.index import Index
from data.plan import TrainPlan
from data.prepare import input_spec, prepare
from deploy.input_spec import InputSpec
from deploy.machine import usable_cores
from scripts.bench_lines import machine_line, ratio_line

WARM_UP = 8
"""Batches: more than any of them prefetches."""


class Source(NamedTuple):
    next_batch: Callable[[], object]
    close: Callable[[], None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_loaders", description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="drawn once (default: 1000)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help="timed in each turn (default: 20)")
    parser.add_argument("--root", type=Path, default=Path("datasets/synthetic"))
    parser.add_argument(
        "overrides", nargs="*", help="of our loaders, such as data.augment.randaugment.num_ops=2"
    )
    options = parser.parse_args()

    config = load(
        "train",
        TrainConfig,
        [
            "data=synthetic",
            f"data.num_train={options.images}",
            f"data.root={options.root}",
            *options.overrides,
        ],
    )
    splits = prepare(config.data, options.root / "bench", print)
    spec = input_spec(config.data, splits.train.class_names)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shared = (splits.train, spec, device, options.batch, options.threads)
    contenders: dict[str, Callable[[], Source]] = {
        "dali": lambda: our_loader("dali", config, *shared),
        "torch": lambda: our_loader("torch", config, *shared),
        "stock torch": lambda: stock_torch(*shared),
        "bare DALI": lambda: bare_dali(*shared),
    }

    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, start in contenders.items():
            rates[name].append(images_per_s(start(), options.batch, options.batches, device))
    print(machine_line(device))
    print(f"batch {options.batch}, {options.threads} threads or worker processes, {options.rounds} rounds")
    for name, found in rates.items():
        print(f"  {name:12} {statistics.median(found):8.0f} images/s ({min(found):.0f} to {max(found):.0f})")
    print(ratio_line("dali over stock torch", rates["dali"], rates["stock torch"], "at least 1.6"))
    print(ratio_line("dali over our torch loader", rates["dali"], rates["torch"], "at least 1.6"))
    print(ratio_line("dali over bare DALI", rates["dali"], rates["bare DALI"], "at least 0.95"))
    return 0


def our_loader(
    name: str,
    config: TrainConfig,
    index: Index,
    spec: InputSpec,
    device: torch.device,
    batch: int,
    threads: int,
) -> Source:
    plan = TrainPlan(
        index, spec, config.data.augment, batch_size=batch, accumulate=1, rank=0, world=1, seed=0
    )
    choice = load("train", TrainConfig, [f"loader={name}", f"loader.threads={threads}"]).loader
    loader = build_loader(choice, plan, spec, device)

    def batches() -> Iterator[object]:
        while True:
            yield from loader

    return Source(batches().__next__, loader.close)


def stock_torch(index: Index, spec: InputSpec, device: torch.device, batch: int, threads: int) -> Source:
    """ImageFolder and torchvision's transforms in a DataLoader, as in torchvision's own training recipe."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(spec.size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(mean=list(spec.mean), std=list(spec.std)),
        ]
    )
    images = DataLoader(
        ImageFolder(str(Path(index.paths[0]).parents[1]), transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=threads,
        pin_memory=device.type == "cuda",
        persistent_workers=True,
    )

    def batches() -> Generator[object, None, None]:
        while True:
            for pixels, labels in images:
                yield pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    stream = batches()
    return Source(stream.__next__, stream.close)


def bare_dali(index: Index, spec: InputSpec, device: torch.device, batch: int, threads: int) -> Source:
    """The pipeline of DALI's own ImageNet example, run with nothing around it."""
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = device.type == "cuda"

    @pipeline_def(  # type: ignore[untyped-decorator]  # DALI is untyped to us
        batch_size=batch,
        num_threads=threads,
        device_id=0 if on_gpu else None,
        exec_dynamic=True,
        prefetch_queue_depth=2,
    )
    def pipeline() -> Any:
        encoded, labels = fn.readers.file(
            files=list(index.paths), labels=index.labels.tolist(), random_shuffle=True, name="reader"
        )
        images = fn.decoders.image_random_crop(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.RGB,
            random_area=[0.08, 1.0],
            random_aspect_ratio=[0.75, 1.3333],
            num_attempts=10,
        )
        images = fn.resize(images, size=[spec.size, spec.size], interp_type=types.INTERP_LINEAR)
        images = fn.crop_mirror_normalize(
            images,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[255 * value for value in spec.mean],
            std=[255 * value for value in spec.std],
            mirror=fn.random.coin_flip(),
        )
        return images, labels

    built = pipeline()
    built.build()
    return Source(lambda: torch.utils.dlpack.from_dlpack(built.run()[0].as_tensor()), lambda: None)


def images_per_s(source: Source, batch: int, count: int, device: torch.device) -> float:
    """From a running start; the source is closed, so that nothing of it runs beside the next one."""
    for _ in range(WARM_UP):
        source.next_batch()
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        source.next_batch()
    _wait(device)
    seconds = time.perf_counter() - start
    source.close()
    return batch * count / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
