"""The configs of `python -m optimize` and of `optimize.search`; the values stand in YAML."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from configs.fields import CLOSED, NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from configs.quantize import BenchConfig, CalibrationConfig, GateConfig

ORIGINAL = "original"
"""Among the teachers: the checkpoint that the chain began with."""


@dataclass(config=CLOSED, frozen=True)
class FinetuneConfig:
    """As the network was trained, but for these."""

    epochs: PositiveInt
    lr: PositiveFloat
    warmup_epochs: NonNegativeFloat
    teachers: list[str]
    """Checkpoints to learn from besides the labels; `original` is the one that the chain began with."""
    temperature: PositiveFloat
    weight: Annotated[float, Field(ge=0, le=1)]
    """Of the teachers in the loss."""
    method: Literal["kd", "dist"]
    """As distill.method of `python -m train`."""
    features: NonNegativeFloat
    """As distill.features."""

    @model_validator(mode="after")
    def _warm_up_fits(self) -> FinetuneConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs:g} must be less than epochs {self.epochs}")
        return self


def require_training(rounds: int, finetune: FinetuneConfig | None) -> None:
    """Raises ValueError for rounds between which nothing is trained."""
    if finetune is None and rounds > 1:
        raise ValueError(f"finetune=null leaves rounds {rounds} without training: give rounds=1")


@dataclass(config=CLOSED, frozen=True)
class PruneConfig:
    importance: Literal["l1", "l2", "taylor", "bn_scale", "random"]
    """What makes a channel matter; random is the control that the others have to beat."""
    by: Literal["macs", "parameters", "latency"]
    """What is to become less. latency: of the layers, timed one by one."""
    keep: Annotated[float, Field(gt=0, lt=1)]
    """Share of it that is left."""
    scope: Literal["uniform", "global"]
    """uniform: the same share of every layer; global: those that matter least, wherever they are; with
    taylor or by=latency, for what they cost."""
    round_to: PositiveInt
    """Channels that are left are a multiple of this, as the kernels of GPUs like them."""
    max_cut: Annotated[float, Field(gt=0, lt=1)]
    """Of the channels of one layer at most this share goes."""
    num_images: PositiveInt
    """Training images for importance=taylor. Few leave it to chance: what counts is the square of the loss's
    slope, which is large on the few images that the network has wrong."""
    latency_table: str | None
    """For by=latency: the times of the layers on a target, as `python -m deploy layers` leaves them; null:
    they are measured here, with latency.threads."""

    rounds: PositiveInt
    """Steps to `keep`, each to the same share of what is left, with a training behind each."""
    finetune: FinetuneConfig | None
    """That training; null: none, for a stage that follows."""

    @model_validator(mode="after")
    def _rounds_train(self) -> PruneConfig:
        require_training(self.rounds, self.finetune)
        return self

    @model_validator(mode="after")
    def _table_is_read(self) -> PruneConfig:
        if self.latency_table is not None and self.by != "latency":
            raise ValueError(f"latency_table is for by=latency, not for by={self.by}: give it null")
        return self


Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(config=CLOSED, frozen=True)
class SparsifyConfig:
    """Single weights become zero and stay so; shapes stay as they are."""

    pattern: Literal["unstructured", "2:4"]
    """2:4: of every 4 input channels that follow each other 2 stay, for each output channel and each place of
    the kernel. Layers whose input channels 4 does not divide stay dense."""
    sparsity: Share
    """Of the weights that is zero at the end. For unstructured alone: 2:4 is one half."""
    scope: Literal["uniform", "global"]
    """uniform: the same share of every layer; global: the smallest, wherever they are."""
    dense: list[str]
    """Layers that stay as they are: names, `first` for the first convolution, `head` for the last layer."""
    rounds: PositiveInt
    """Steps in which the share rises, each with a training behind it."""
    finetune: FinetuneConfig | None
    """That training; null: none, for a stage that follows."""

    @model_validator(mode="after")
    def _rounds_train(self) -> SparsifyConfig:
        require_training(self.rounds, self.finetune)
        return self


@dataclass(config=CLOSED, frozen=True)
class LotteryConfig:
    """The weights that training shows to matter, trained from their start (Frankle and Carbin 2019)."""

    sparsity: Share
    """Of the weights that is zero at the end."""
    scope: Literal["uniform", "global"]
    """As of sparsify."""
    dense: list[str]
    """As of sparsify."""
    rounds: PositiveInt
    """Each takes the same share of the weights that are left."""
    rewind: str | None
    """A checkpoint from early in the run, to whose weights and step those that are left go back (Frankle et
    al. 2020): a path, or the name of a file beside the checkpoint; null: to those that the run began with."""
    epochs: PositiveInt | None
    """Of each training; null: as many as the run had."""

    @model_validator(mode="after")
    def _the_schedule_is_the_runs(self) -> LotteryConfig:
        if self.rewind is not None and self.epochs is not None:
            raise ValueError(
                f"epochs {self.epochs} with rewind={self.rewind}: the schedule goes on at its step; give null"
            )
        return self


@dataclass(config=CLOSED, frozen=True)
class LatencyConfig:
    """How a stage's network is timed: exported, in ONNX Runtime on this CPU, beside the one before."""

    threads: PositiveInt
    seconds: NonNegativeFloat
    """Of each of the two; 0 is off."""


@dataclass(config=CLOSED, frozen=True)
class FactoriseConfig:
    by: Literal["energy", "macs", "latency"]
    """energy: every layer keeps `energy`; macs: as much as lets the network cost `keep`; latency: as energy,
    but only the layers whose factors are faster in ONNX Runtime on this machine."""
    energy: Annotated[float, Field(gt=0, le=1)]
    """Share of the squared singular values that is kept, of each unfolding of a weight."""
    keep: Annotated[float, Field(gt=0, lt=1)]
    """Share of the MACs that is left, for by=macs."""
    round_to: PositiveInt
    """Ranks are a multiple of this, where a layer has as many."""


Bits = Annotated[int, Field(ge=1, le=8)]


@dataclass(config=CLOSED, frozen=True)
class ClusterConfig:
    bits: Bits
    """The weights of a layer share 2^bits values."""
    first_last_bits: Bits
    """Of the first convolution and the last linear layer."""
    deflate: bool
    """Whether the file of the shared weights is compressed by zlib as well."""


@dataclass(config=CLOSED, frozen=True)
class LayersConfig:
    """`python -m optimize.layer_latency`."""

    checkpoint: str
    out: str
    """Folder of the layers' files."""


@dataclass(config=CLOSED, frozen=True)
class QatConfig:
    """Training with fake quantisers, whose ranges `calibration` sets."""

    momentum: Annotated[float, Field(ge=0, lt=1)]
    """Share by which a training step moves a range towards that of its batch; 0: it stays as calibrated."""
    training: FinetuneConfig
    num_checked: PositiveInt
    """Validation images on which the network and its INT8 file are compared."""


StageName = Literal["prune", "factorise", "sparsify", "lottery", "cluster", "finetune", "qat", "quantize"]


@dataclass(config=CLOSED, frozen=True)
class Compression:
    """Of a chain and of a search over chains: configs/compression.yaml."""

    checkpoint: str
    out: str | None
    """Folder of the results; null: `optimize` or `search` beside the checkpoint. Interrupted, it goes on."""
    data_root: str | None
    """Where the run's images are now, if they have moved since the training."""
    processes: PositiveInt | None
    """Of each training, as `python -m train processes=N`."""
    seed: Seed
    prune: PruneConfig
    factorise: FactoriseConfig
    cluster: ClusterConfig
    finetune: FinetuneConfig
    sparsify: SparsifyConfig
    lottery: LotteryConfig
    qat: QatConfig
    calibration: CalibrationConfig
    """Of the stages qat and quantize."""
    gate: GateConfig
    latency: LatencyConfig


@dataclass(config=CLOSED, frozen=True)
class OptimizeConfig(Compression):
    """`python -m optimize`."""

    stages: Annotated[list[StageName], Field(min_length=1)]
    """In this order; a name may come more than once."""

    @model_validator(mode="after")
    def _int8_is_last(self) -> OptimizeConfig:
        if "quantize" in self.stages[:-1]:
            raise ValueError(f"stages {self.stages}: quantize must be the last one, it leaves INT8 files")
        if "qat" in self.stages[:-1] and self.stages[-2:] != ["qat", "quantize"]:
            raise ValueError(
                f"stages {self.stages}: only quantize may follow qat, which fits the network to its INT8 file"
            )
        return self


@dataclass(config=CLOSED, frozen=True)
class SpaceConfig:
    """What a search may choose from; one value fixes it."""

    keep: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    """prune.keep; 1: the stage prune is left out."""
    energy: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    """factorise.energy; 1: the stage factorise is left out."""
    precision: Annotated[list[Literal["fp32", "int8", "qat"]], Field(min_length=1)]
    """int8: calibrated; qat: trained as its INT8 file rounds."""


@dataclass(config=CLOSED, frozen=True)
class SearchConfig(Compression):
    """`python -m optimize.search`."""

    target: Literal["cpu"]
    """Whose latency counts: this machine's, measured."""
    budget: PositiveInt
    """Chains that are tried, those of an interrupted search among them."""
    space: SpaceConfig
    bench: BenchConfig
    num_samples: Annotated[int, Field(ge=1, le=64)]
    """Images that travel in the bundle with their expected outputs."""
