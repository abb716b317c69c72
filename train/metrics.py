"""Counts that add up over batches and ranks, and the scores behind them; labels below 0 count nowhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from train.class_metrics import ClassMetrics, Scores, class_metrics
from train.strategy import Strategy


@dataclass(frozen=True)
class EvalResult:
    loss: float
    """Mean cross entropy, without label smoothing."""
    top1: float
    """Share in 0..1."""
    top5: float
    """Share in 0..1 with the label among the five best, or among all where there are fewer classes."""
    num_images: int
    confusion: torch.Tensor
    """int64 [classes, classes]: rows are labels, columns predictions."""
    classes: ClassMetrics
    """Its curves' values on rank 0 only, as the scores are."""
    scores: Scores | None

    @property
    def values(self) -> dict[str, float]:
        """Everything that is one number; nan where it is not defined."""
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5, **self.classes.means()}


class EvalCounts:
    """All in one float64 tensor, so that one all-reduce joins the ranks."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self.values = torch.zeros(4 + num_classes * num_classes, dtype=torch.float64, device=device)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """logits float [n, classes], labels int64 [n]."""
        counted = labels >= 0
        logits, labels = logits[counted].float(), labels[counted]
        best = logits.topk(min(5, self._num_classes), dim=1).indices
        hits = best == labels[:, None]
        self.values[0] += labels.numel()
        self.values[1] += F.cross_entropy(logits, labels, reduction="sum")
        self.values[2] += hits[:, 0].sum()
        self.values[3] += hits.sum()
        cells = labels * self._num_classes + best[:, 0]
        self.values[4:] += torch.bincount(cells, minlength=self._num_classes**2)

    def result(self, scores: Scores | None = None) -> EvalResult:
        """Of the counts so far; call on counts that were summed over the ranks."""
        count, loss, top1, top5 = self.values[:4].tolist()
        confusion = self.values[4:].reshape(self._num_classes, self._num_classes).to(torch.int64).cpu()
        classes = class_metrics(confusion.numpy(), scores)
        return EvalResult(loss / count, top1 / count, top5 / count, int(count), confusion, classes, scores)


class EvalScores:
    """The probabilities of this rank's images as they come, repetitions too: all ranks hold equally many."""

    def __init__(self) -> None:
        self._labels: list[torch.Tensor] = []
        self._probabilities: list[torch.Tensor] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """logits float [n, classes], labels int64 [n]."""
        self._labels.append(labels)
        self._probabilities.append(logits.float().softmax(1))

    def gather(self, strategy: Strategy) -> Scores | None:
        """Every image's once, in the order of the split's index; None on ranks other than 0.

        `data.plan.EvalPlan` makes row r + k x world the k-th image of rank r, so that interleaving the ranks
        restores the order.
        """
        labels = strategy.gather(torch.cat(self._labels))
        probabilities = strategy.gather(torch.cat(self._probabilities))
        if labels is None or probabilities is None:
            return None
        all_labels = torch.stack(labels, dim=1).flatten().cpu()
        all_probabilities = torch.stack(probabilities, dim=1).flatten(0, 1).cpu()
        counted = all_labels >= 0
        return Scores(all_labels[counted].numpy(), all_probabilities[counted].numpy())
