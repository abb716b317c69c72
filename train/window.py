"""What is measured between two records."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from data.loader import Batch
from train.strategy import Strategy

LOADER_BOUND = 0.05
"""From this share of the time on that the loop waits for images, the loader is what limits the rate."""


class Window:
    """Rates, waits and losses. Nothing here waits for the GPU before `close`."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._epoch = [0.0, 0.0, 0.0]  # images, seconds, seconds waited
        self.losses: list[float] = []
        """Of the steps of the window that was closed last, means over the replicas."""
        self.step_loss = torch.zeros((), device=strategy.device)
        """Of the step so far, this replica's."""
        self._start()

    def next(self, batches: Iterator[Batch]) -> Batch:
        before = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - before
        self._images += len(batch.labels) * self._strategy.replicas
        return batch

    def add(self, loss: torch.Tensor) -> None:
        self.step_loss = self.step_loss + loss

    def end_step(self) -> None:
        self._losses.append(self.step_loss)
        self.step_loss = torch.zeros_like(self.step_loss)

    def close(self) -> dict[str, float]:
        """The mean loss of the steps whose loss is finite, images_per_s over all ranks, and the share of the
        time that this rank waited for images."""
        self.losses = self.losses_so_far()
        seconds = time.perf_counter() - self._began
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        values = {
            "loss": sum(finite) / len(finite) if finite else math.nan,
            "images_per_s": self._images / seconds,
            "data_wait": self._waited / seconds,
        }
        for place, value in enumerate((self._images, seconds, self._waited)):
            self._epoch[place] += value
        self._start()
        return values

    def losses_so_far(self) -> list[float]:
        """Of the steps since the window was opened, means over the replicas; on every rank."""
        if not self._losses:
            return []
        losses: list[float] = (
            self._strategy.sum(torch.stack(self._losses)) / self._strategy.replicas
        ).tolist()
        return losses

    def summary(self) -> str:
        """Of all closed windows, in words."""
        images, seconds, waited = self._epoch
        if not seconds:
            return "no step was left"
        limit = "loader" if waited / seconds > LOADER_BOUND else "model"
        rate, wait = images / seconds, waited / seconds
        return f"{rate:,.0f} img/s, limited by the {limit} (waited for images {wait:.1%} of the time)"

    def _start(self) -> None:
        self._began = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._losses: list[torch.Tensor] = []
