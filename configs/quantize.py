"""The config of `python -m scripts.quantize_and_benchmark`; the values stand in YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from configs.fields import CLOSED, NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from deploy.errors import LabError
from deploy.target import load_target

CalibrationMethod = Literal["max", "percentile", "entropy", "mse"]
Percentile = Annotated[float, Field(gt=50, le=100)]


@dataclass(config=CLOSED, frozen=True)
class CalibrationConfig:
    method: CalibrationMethod
    percentile: Percentile
    """For method=percentile: share of the absolute values that the scale covers, %."""
    num_images: PositiveInt
    """Drawn from the training images, prepared as for evaluation."""
    balanced: bool
    """As many of each class as of any other, as far as they go; otherwise in the classes' shares."""
    equalise: bool
    """Scale the channels between two layers, so that they share the one scale of their tensor fairly."""
    correct_biases: bool
    """Take the mean error that quantisation adds to each channel off its bias."""
    mixed: bool
    """Where INT8 falls through the gate, put the layers that cost most back in float until it passes."""


Precision = Literal["int8", "fp16", "bf16", "int8-weights"]


@dataclass(config=CLOSED, frozen=True)
class BenchConfig:
    threads: PositiveInt | None
    """null: all usable cores."""
    seconds: PositiveFloat
    """Of measuring for each variant and batch size."""
    batches: Annotated[list[PositiveInt], Field(min_length=1)]
    """Latency is taken at the smallest, throughput at the largest."""


@dataclass(config=CLOSED, frozen=True)
class GateConfig:
    max_drop: NonNegativeFloat
    """Points of top-1 that a result may be below the checkpoint that it came from."""
    ship_failed: bool
    """Whether a variant that falls through goes into the bundle all the same."""


@dataclass(config=CLOSED, frozen=True)
class QuantizeConfig:
    """`python -m scripts.quantize_and_benchmark`."""

    checkpoint: str
    compressed: list[str]
    """Checkpoints that `python -m optimize` has made of it: more variants of the same bundle."""
    out: str | None
    """Where bundle/, results.jsonl and report.html go; null: beside the checkpoint."""
    data_root: str | None
    """Where the run's images are now, if they have moved since the training."""
    seed: Seed
    precisions: list[Precision]
    """Of each network besides fp32. int8-weights: 8 bits in the file, float arithmetic."""
    targets: list[str]
    """Devices that the bundle is for, by their names in `configs/target`: what they need travels with it."""
    calibration: CalibrationConfig
    gate: GateConfig
    bench: BenchConfig
    num_samples: Annotated[int, Field(ge=1, le=64)]
    """Images that travel in the bundle with their expected outputs."""

    @model_validator(mode="after")
    def _targets_have_the_precisions(self) -> QuantizeConfig:
        problems = []
        for name in self.targets:
            try:
                target = load_target(name)
            except LabError as error:
                problems.append(str(error))
                continue
            if target.estimate_only:
                problems.append(f"target {name}: there for estimates alone, nothing can be built for it")
            # 8 bits in the file are computed with in float.
            wanted = ["fp32" if p == "int8-weights" else p for p in self.precisions]
            problems += [
                f"{target.lacks(p)}: take it out of precisions" for p in wanted if not target.supports(p)
            ]
        if problems:
            raise ValueError("targets: " + "; ".join(problems))
        return self
