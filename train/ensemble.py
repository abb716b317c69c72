"""Several trained networks as one: their probabilities averaged, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deploy.errors import LabError
from deploy.input_spec import InputSpec
from train.checkpoint import Checkpoint, load_checkpoint, restore_model
from train.metrics import EvalCounts

NUM_BINS = 15


@dataclass(frozen=True)
class Scores:
    top1: float
    """Share in 0..1."""
    macro_f1: float
    """Mean over the classes of 2 TP / (2 TP + FP + FN)."""
    nll: float
    """Mean negative log-likelihood of the label, nats."""
    ece: float
    """Expected calibration error, share in 0..1: see `ScoreCounts`."""


class ScoreCounts:
    """Counts for `Scores` that add up over batches; labels below 0 count nowhere.

    The calibration error is that of Guo et al. 2017, equation 3, with 15 bins of equal width: the mean
    over the images of the gap, in the bin of their confidence, between confidence and accuracy.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._counts = EvalCounts(num_classes, device)
        self._gaps = torch.zeros(NUM_BINS, dtype=torch.float64, device=device)

    def add(self, log_probabilities: torch.Tensor, labels: torch.Tensor) -> None:
        """float32 [n, classes], int64 [n]."""
        self._counts.add(log_probabilities, labels)
        counted = labels >= 0
        confidence, best = log_probabilities[counted].double().exp().max(1)
        bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        self._gaps.index_add_(0, bins, confidence - (best == labels[counted]).double())

    def result(self) -> Scores:
        found = self._counts.result()
        right = found.confusion.diagonal().double()
        named = (found.confusion.sum(0) + found.confusion.sum(1)).clamp(min=1)
        ece = float(self._gaps.abs().sum()) / found.num_images
        return Scores(found.top1, float((2 * right / named).mean()), found.loss, ece)


def load_members(paths: Sequence[Path], spec: InputSpec) -> list[Checkpoint]:
    """Raises LabError where one cannot be read, or does not see images as `spec` says."""
    members = []
    for path in paths:
        member = load_checkpoint(path)
        require_same_input(path, member.input_spec, spec)
        members.append(member)
    return members


def require_same_input(path: Path, found: InputSpec, spec: InputSpec) -> None:
    """Raises LabError with every difference, since averaging needs the same classes and the same pixels."""
    theirs, ours = found.to_dict(), spec.to_dict()
    differences = [
        f"  - {key}: {_short(theirs[key])} there, {_short(ours[key])} here"
        for key in ours
        if theirs[key] != ours[key]
    ]
    if differences:
        raise LabError(
            f"{path} does not see the same images or classes:\n"
            + "\n".join(differences)
            + "\nuse a checkpoint that was trained with these, the same data.input and classes"
        )


def as_network(member: Checkpoint, device: torch.device, *, channels_last: bool) -> nn.Module:
    """The checkpoint's network to ask, on the device and in evaluation mode."""
    network = restore_model(member).requires_grad_(False).to(device)
    return network.to(memory_format=torch.channels_last) if channels_last else network


@torch.no_grad()
def log_probabilities(
    networks: Sequence[nn.Module], images: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Of each network, float32 [networks, n, classes]; the logits are divided by `temperature` before."""
    return torch.stack([(network(images).float() / temperature).log_softmax(1) for network in networks])


def mean_log_probabilities(members: torch.Tensor) -> torch.Tensor:
    """The log of the mean of the networks' probabilities, [networks, n, classes] -> [n, classes]."""
    return members.logsumexp(0) - math.log(len(members))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else f"{text[:76]} ..."
