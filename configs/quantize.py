"""The config of `python -m scripts.quantize_and_benchmark`; the values stand in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from configs.fields import CLOSED, NonNegativeFloat, PositiveFloat, PositiveInt, Rgb, RgbPositive, Seed
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


@dataclass(config=CLOSED, frozen=True)
class QuantizeCalibrationConfig(CalibrationConfig):
    source: str | None
    """For `onnx`: a folder of images, or an .npz file with an array for each input."""


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
class PreprocessConfig:
    """How an image file becomes the input of a model of `onnx`."""

    mean: Rgb
    """Of pixels from 0 to 1, red, green, blue."""
    std: RgbPositive
    size: PositiveInt | None
    """px of the square that is cut; null: what the model says."""
    resize: PositiveInt | None
    """px of the shorter side before that; null: the same as the square."""


@dataclass(config=CLOSED, frozen=True)
class QuantizeConfig:
    """`python -m scripts.quantize_and_benchmark`."""

    SHORT: ClassVar[Mapping[str, str]] = {"calibration": "calibration.source"}
    """Sections that a plain value may be given to, and the key that it is for."""

    checkpoint: str | None
    onnx: str | None
    """Instead of a checkpoint: a model of anyone's."""
    compressed: list[str]
    """Checkpoints that `python -m optimize` has made of it: more variants of the same bundle."""
    out: str | None
    """Where bundle/, results.jsonl and report.html go; null: beside the checkpoint, for `onnx` runs/NAME."""
    data_root: str | None
    """Where the run's images are now, if they have moved since the training."""
    seed: Seed
    precisions: list[Precision]
    """Of each network besides fp32. int8-weights: 8 bits in the file, float arithmetic."""
    targets: list[str]
    """Devices that the bundle is for, by their names in `configs/target`: what they need travels with it."""
    calibration: QuantizeCalibrationConfig
    test: str | None
    """For `onnx`: as calibration.source, what the variants are compared on; null: what calibration leaves."""
    preprocess: PreprocessConfig
    class_output: str | None
    """For `onnx`: the output N x classes that names a class. auto: the only one, if it has that shape."""
    min_snr_db: Annotated[float, Field(allow_inf_nan=False)] | None
    """For `onnx`: how near to the original's each output must be, dB. Layers go back to float until it is so;
    and it is the gate, unless there are labels: then that is gate.max_drop. null: all in INT8, no gate."""
    gate: GateConfig
    bench: BenchConfig
    num_samples: Annotated[int, Field(ge=1, le=64)]
    """Samples that travel in the bundle with their expected outputs."""

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizeConfig:
        problems = self._not_for_targets()
        if self.checkpoint is None and self.onnx is None:
            problems.append("checkpoint is required: give checkpoint=RUN/checkpoint.pt, or onnx=MODEL.onnx")
        if self.checkpoint is not None and self.onnx is not None:
            problems.append("checkpoint and onnx are two networks: give one of them")
        if self.onnx is None:
            given = {"calibration.source": self.calibration.source, "test": self.test}
            problems += [f"{key} is for onnx=MODEL.onnx" for key, value in given.items() if value is not None]
        elif self.checkpoint is None:
            problems += self._not_for_onnx()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _not_for_onnx(self) -> list[str]:
        problems = []
        if self.calibration.source is None:
            problems.append("calibration is required with onnx: give calibration=FOLDER or =FILE.npz")
        wrong = {
            "compressed": bool(self.compressed),
            "data_root": self.data_root is not None,
            "calibration.balanced": self.calibration.balanced,
            "calibration.equalise": self.calibration.equalise,
            "calibration.correct_biases": self.calibration.correct_biases,
        }
        problems += [f"{key} is for checkpoints: leave it out with onnx" for key, on in wrong.items() if on]
        if others := sorted(set(self.precisions) - {"int8", "fp16"}):
            problems.append(f"precisions {others} are for checkpoints: of onnx there are int8 and fp16")
        return problems

    def _not_for_targets(self) -> list[str]:
        problems = []
        for name in self.targets:
            try:
                target = load_target(name)
            except LabError as error:
                problems.append(f"targets: {error}")
                continue
            if target.estimate_only:
                problems.append(
                    f"targets: target {name}: there for estimates alone, nothing can be built for it"
                )
            # 8 bits in the file are computed with in float.
            wanted = ["fp32" if p == "int8-weights" else p for p in self.precisions]
            problems += [
                f"targets: {target.lacks(p)}: take it out of precisions"
                for p in wanted
                if not target.supports(p)
            ]
        return problems
