"""What errors at several amounts of data say: more data, or a better network?

The terms are those of Ng 2018, "Machine Learning Yearning", chapters 20 to 32: the avoidable bias is the
training error above what one could live with, the variance is the validation error above the training error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import mean, stdev

from configs.schema import TrainConfig

NOISE = 2.0
"""Standard errors of the validation error, below which a difference is none."""


@dataclass(frozen=True)
class Point:
    """One amount of data, over the seeds."""

    fraction: float
    num_images: int
    train_error: float
    """Share of the images trained on that the network gets wrong, prepared as for evaluation."""
    val_error: float
    train_std: float
    val_std: float
    """Over the seeds (n - 1); 0 of one."""

    @property
    def gap(self) -> float:
        return self.val_error - self.train_error


@dataclass(frozen=True)
class Verdict:
    name: str
    """high bias, high variance, or neither."""
    closes: bool
    """Whether the gap at the most data is smaller than at the least."""
    words: str


def point(fraction: float, num_images: int, train: list[float], val: list[float]) -> Point:
    """Of the errors of one run for each seed."""
    deviations = [stdev(errors) if len(errors) > 1 else 0.0 for errors in (train, val)]
    return Point(fraction, num_images, mean(train), mean(val), deviations[0], deviations[1])


def verdict(points: list[Point], num_val: int, target: float) -> Verdict:
    """Of points by growing fraction. `target` is the error that one could live with.

    At the most data, the larger of avoidable bias and variance is what is high, if it is above the noise:
    NOISE x sqrt(e (1 - e) / num_val), the binomial standard error of the validation error e.
    """
    first, last = points[0], points[-1]
    error = last.val_error
    noise = NOISE * (error * (1 - error) / num_val) ** 0.5
    bias, variance = max(0.0, last.train_error - target), last.gap
    closes = len(points) > 1 and first.gap - last.gap > noise
    figures = (
        f"at {last.num_images} images the training error is {last.train_error:.2%}, the validation error "
        f"{error:.2%}; {first.gap:.2%} lay between them at {first.num_images} images, {last.gap:.2%} do now "
        f"(noise {noise:.2%})"
    )
    if max(bias, variance) <= noise:
        return Verdict("neither", closes, f"neither is high: {figures}")
    if bias >= variance:
        return Verdict(
            "high bias",
            closes,
            f"high bias: {figures}. Both errors are high and close: more data will not help; a larger "
            "network, more epochs, another learning rate or less regularisation may",
        )
    remedy = (
        "the gap closes with more data, so more of it will help"
        if closes
        else "the gap does not close with more data: augmentation, weight decay or a smaller network may help"
    )
    return Verdict("high variance", closes, f"high variance: {figures}. {remedy}")


def longer(config: TrainConfig, fraction: float) -> TrainConfig:
    """For a share of the images, with as many steps as all of them would make: whatever counts epochs grows
    by 1 / fraction, up to rounding."""
    cycles = config.optim.cycles
    epochs = max(1, round(config.epochs / cycles / fraction)) * cycles
    growth = epochs / config.epochs
    progressive = config.data.input.progressive
    grown = replace(progressive, epochs=round(progressive.epochs * growth))
    return replace(
        config,
        train_fraction=fraction,
        epochs=epochs,
        checkpoint_epochs=max(1, round(config.checkpoint_epochs * growth)),
        optim=replace(config.optim, warmup_epochs=config.optim.warmup_epochs * growth),
        data=replace(config.data, input=replace(config.data.input, progressive=grown)),
    )
