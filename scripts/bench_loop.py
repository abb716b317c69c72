"""What the benchmarks of training share: our loop with all that belongs to it, and a clock around it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from configs.load import load
from configs.schema import TrainConfig
from data.loader import Batch, Loader, LoaderState
from deploy.input_spec import InputSpec
from train.checkpoint import Progress
from train.diagnosis import Diagnosis
from train.loop import Job, Training, train_epoch
from train.model import build_model
from train.monitor import Monitor
from train.optim import build_optimizer
from train.profiler import Profiler
from train.stop import StopRequest
from train.strategy import Strategy
from train.task import classification
from train.watchdog import Watchdog

NUM_CLASSES = 10
DEFAULTS = [
    "data=synthetic", f"data.num_classes={NUM_CLASSES}", "data.num_train=1000", "data.num_val=100",
    "data.input.size=64", "data.input.resize=72", "model=resnet18", "batch_size=32",
    "optim.warmup_epochs=0.0", "epochs=1000",
]  # fmt: skip


@dataclass
class InMemory:
    """A loader of batches that are there already, or of those that a stream has next."""

    batches: Iterator[Batch] | Sequence[Batch]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.batches)
        for _ in range(self.count):
            yield next(batches)

    def state_dict(self) -> LoaderState:
        return {"position": 0, "num_steps": self.count}

    def load_state_dict(self, state: LoaderState) -> None:
        pass

    def close(self) -> None:
        pass


def bench_config(overrides: Sequence[str], steps: int) -> TrainConfig:
    """Ours for a benchmark, with one record of the metrics in each turn of `steps` steps."""
    return load("train", TrainConfig, [*DEFAULTS, f"log_every={steps}", *overrides])


def drawn_spec(config: TrainConfig) -> InputSpec:
    size = config.data.input.size
    return InputSpec(size, size, (0.5,) * 3, (0.5,) * 3, tuple(str(i) for i in range(NUM_CLASSES)))


def random_batches(config: TrainConfig, count: int, device: torch.device) -> list[Batch]:
    size = config.data.input.size
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    shape = (config.batch_size, 3, size, size)
    return [
        Batch(
            torch.randn(shape, device=device).to(memory_format=layout),
            torch.randint(NUM_CLASSES, (config.batch_size,), device=device),
        )
        for _ in range(count)
    ]


@contextmanager
def our_training(config: TrainConfig, spec: InputSpec, strategy: Strategy) -> Iterator[tuple[Training, Job]]:
    """A network as it is at the start of a run, with its records, stop check and watchdog."""
    device = strategy.device
    torch.backends.cudnn.benchmark = True  # as in a run
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        torch.manual_seed(0)
        model = build_model(config.model, spec.num_classes).to(device)
        if config.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if config.compile:
            model.compile()
        training = Training(
            model=model,
            prepared=strategy.prepare(model),
            optimizer=build_optimizer(config.optim, model),
            scaler=torch.amp.GradScaler(device.type, enabled=strategy.precision == "fp16"),
            ema=None,
            progress=Progress(),
            metrics={},
        )
        monitor = Monitor(folder, 0, evaluated=False, enabled=strategy.ranks.is_first)
        stack.callback(monitor.close)
        job = Job(
            config=config,
            spec=spec,
            run_dir=folder,
            strategy=strategy,
            task=classification(config, np.full(spec.num_classes, 100), device),
            files_of=lambda step: [],
            monitor=monitor,
            diagnosis=Diagnosis(config, folder, model, strategy, monitor),
            profiler=Profiler(config.profile, folder, strategy),
            stop=stack.enter_context(StopRequest(folder / "log")),
            watchdog=stack.enter_context(Watchdog(600, folder / "log")),
            save=lambda: None,
            show=lambda done, total, text: None,
        )
        yield training, job


def our_loop(training: Training, loader: Loader, job: Job) -> float:
    """Seconds for one epoch of our loop."""
    start = time.perf_counter()
    assert train_epoch(training, loader, job)
    wait(job.strategy.device)
    training.progress = replace(training.progress, epoch=training.progress.epoch + 1)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
