"""The shape of every config: typed, closed dataclasses. The values, defaults too, stand in the YAML files.

Checked by :func:`configs.load.parse`: an unknown key, a wrong type and a value out of range are refused, all
of them in one error. Below that border these are plain dataclasses.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from configs.fields import CLOSED, Count, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Seed
from configs.images import DataConfig, LoaderConfig, SamplingConfig

ModelName = Literal["resnet8", "resnet20", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"]


@dataclass(config=CLOSED, frozen=True)
class ModelConfig:
    name: ModelName
    stem: Literal["imagenet", "small"]
    """`small` keeps the resolution at the start, for images of about 32 px."""
    dropout: Fraction
    """Before the last linear layer."""
    weights: str | None
    """What training starts from. null: random; `imagenet`: torchvision's; or a file: a checkpoint of edgelab,
    or a state dict of torchvision, timm or NVIDIA's DeepLearningExamples (.pt, .pth, .tar, .safetensors)."""
    new_head: bool
    """Do not take the last layer from `weights`. It is new anyway where the numbers of classes differ."""


@dataclass(config=CLOSED, frozen=True)
class _Optim:
    lr: PositiveFloat
    """At the end of the warm-up, for the global batch."""
    weight_decay: NonNegativeFloat
    """On weights of convolutions and linear layers; none on norms and biases."""
    warmup_epochs: NonNegativeFloat
    final_lr: NonNegativeFloat
    """Where the cosine ends, as a share of `lr`."""
    cycles: PositiveInt
    """Cosines one after the other; above 1, each leaves snapshot-N.pt for an ensemble."""
    l1: NonNegativeFloat
    """Weight of the sum of absolute values, on the same weights as weight_decay."""


@dataclass(config=CLOSED, frozen=True)
class SgdConfig(_Optim):
    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum above 0")
        return self


@dataclass(config=CLOSED, frozen=True)
class AdamWConfig(_Optim):
    name: Literal["adamw"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: PositiveFloat


OptimConfig = Annotated[SgdConfig | AdamWConfig, Field(discriminator="name")]


@dataclass(config=CLOSED, frozen=True)
class StrategyConfig:
    name: Literal["auto", "single", "ddp", "fsdp", "pipeline", "horovod"]
    """`auto` is DDP under torchrun, Horovod under horovodrun, and a single process without a launcher."""
    timeout_s: PositiveFloat
    """A step that takes longer has lost a rank, or hangs: the run ends with the stacks of all threads."""
    microbatches: PositiveInt
    """Of strategy=pipeline: parts of a batch that are on their way at the same time."""
    compression: Literal["none", "fp16"]
    """Of strategy=horovod: of the gradients on their way between the ranks."""
    elastic: bool
    """Of strategy=horovod: go on with the workers that are left, or have come."""

    @model_validator(mode="after")
    def _horovod_only(self) -> StrategyConfig:
        if self.name not in ("auto", "horovod") and (self.compression != "none" or self.elastic):
            raise ValueError(
                f"compression={self.compression} and elastic={str(self.elastic).lower()} are for "
                f"strategy=horovod, not {self.name}"
            )
        return self


@dataclass(config=CLOSED, frozen=True)
class LossConfig:
    name: Literal["cross_entropy", "focal"]
    gamma: NonNegativeFloat
    """Of the focal loss."""
    class_balance: Annotated[float, Field(ge=0, le=1)]
    """Classes weigh count to the power of minus this: 0 all alike, 1 the inverse of their frequency."""


@dataclass(config=CLOSED, frozen=True)
class DistillConfig:
    """Learning from other networks besides the labels (`train.distill` has the formulas)."""

    teachers: list[str]
    """Checkpoints, whose probabilities are averaged; none: off."""
    temperature: PositiveFloat
    """Divides the logits of both sides."""
    weight: Annotated[float, Field(ge=0, le=1)]
    """Of the teachers in the loss; the labels have the rest."""
    method: Literal["kd", "dist"]
    """kd: their probabilities (Hinton et al. 2015); dist: how they correlate (Huang et al. 2022)."""
    features: NonNegativeFloat
    """Weight of where the stages look (attention transfer, Zagoruyko and Komodakis 2017); 0 is off."""


@dataclass(config=CLOSED, frozen=True)
class EarlyStopConfig:
    patience: Count
    """Epochs without a better score after which a run ends; 0 is off."""
    min_delta: NonNegativeFloat
    """What counts as better, in the score's own unit (shares of 1)."""


@dataclass(config=CLOSED, frozen=True)
class TransferConfig:
    """How the stages of a network that starts from `model.weights` come to train."""

    frozen_epochs: Count
    """Epochs at the start in which only the head trains."""
    gradual: Count
    """Epochs between two stages that thaw, from the head to the stem; 0 thaws all at once."""
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    """A stage k below the head trains with lr x lr_decay^k; 1 is off."""


@dataclass(config=CLOSED, frozen=True)
class CvConfig:
    """Cross-validation: every image is a validation image once."""

    folds: Count
    """Parts of equal size; 0 is off."""
    fold: Count | None
    """The one held out in this run; null: all of them, a run each, in folders below run_dir."""
    stratified: bool
    """The classes have the same shares in every fold."""

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> CvConfig:
        if self.folds == 1:
            raise ValueError("folds=1 holds nothing out: give 2 or more, or 0 for none")
        if self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} must be below folds {self.folds}")
        return self


@dataclass(config=CLOSED, frozen=True)
class DiagnoseConfig:
    every: Count
    """Steps between two looks at the gradients and activations of every layer; 0 is off."""


@dataclass(config=CLOSED, frozen=True)
class ProfileConfig:
    start: Count
    """Step after which rank 0's trace begins."""
    steps: Count
    """That it lasts; 0 is off."""


@dataclass(config=CLOSED, frozen=True)
class WandbConfig:
    """Weights & Biases, beside TensorBoard."""

    project: str | None
    """null is off."""
    mode: Literal["online", "offline"]
    """offline: kept in the run folder until `wandb sync`."""


@dataclass(config=CLOSED, frozen=True)
class TrainConfig:
    name: str
    """Names the run folder."""
    run_dir: str | None
    """null: a new folder below runs/."""
    resume: bool
    """Go on from run_dir's checkpoint if there is one; without this, such a folder is refused."""
    seed: Seed
    epochs: PositiveInt
    batch_size: PositiveInt
    """Images in one optimiser step over all ranks: a config means the same on one GPU and on eight."""
    accumulate: PositiveInt
    """Backward passes that make up one optimiser step."""
    processes: PositiveInt | None
    """More than 1: the run is started anew under torchrun with so many processes on this machine. Under a
    launcher the launcher's number counts."""
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    """Of autocast; `auto` is bf16 where the device computes in it natively, otherwise fp32."""
    channels_last: bool
    compile: bool
    label_smoothing: Fraction
    mixup: NonNegativeFloat
    """Alpha of the Beta distribution; 0 is off."""
    cutmix: NonNegativeFloat
    """Likewise; with mixup too, each batch draws one of the two."""
    clip_grad_norm: NonNegativeFloat
    """0 is off."""
    ema_decay: Fraction
    """Of the moving average of the weights that is evaluated and exported; 0 is off."""
    on_nan: Literal["stop", "skip"]
    """Where the loss is not finite: stop, or leave the step out, which waits for the GPU in every step."""
    max_nan_steps: Count
    """Steps that on_nan=skip leaves out before it stops all the same."""
    log_every: PositiveInt
    """Steps between two records of the training metrics."""
    checkpoint_every: Count
    """Steps between two checkpoints inside an epoch; 0 saves at the ends of epochs only."""
    checkpoint_epochs: PositiveInt
    """Epochs between two checkpoints; the last epoch is always saved."""
    keep_epochs: list[PositiveInt]
    """Epochs whose checkpoints stay, as epoch-<number>.pt."""
    model: ModelConfig
    data: DataConfig
    sampling: SamplingConfig
    """Of the training images; validation is never resampled."""
    loader: LoaderConfig
    optim: OptimConfig
    strategy: StrategyConfig
    loss: LossConfig
    distill: DistillConfig
    transfer: TransferConfig
    early_stop: EarlyStopConfig
    cv: CvConfig
    train_fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the training images that are trained on, the same share of each class."""
    diagnose: DiagnoseConfig
    profile: ProfileConfig
    wandb: WandbConfig

    @model_validator(mode="after")
    def _sections_agree(self) -> TrainConfig:
        problems = []
        if self.batch_size % self.accumulate:
            problems.append(
                f"batch_size {self.batch_size} must be a multiple of accumulate {self.accumulate}"
            )
        if self.optim.warmup_epochs >= self.epochs:
            problems.append(
                f"optim.warmup_epochs {self.optim.warmup_epochs:g} must be less than epochs {self.epochs}"
            )
        beyond = [epoch for epoch in self.keep_epochs if epoch > self.epochs]
        if beyond:
            problems.append(f"keep_epochs {beyond} must be at most epochs {self.epochs}")
        if self.epochs % self.optim.cycles:
            problems.append(f"optim.cycles {self.optim.cycles} must divide epochs {self.epochs}")
        if self.model.weights == "imagenet" and self.model.stem != "imagenet":
            problems.append("model.weights=imagenet needs model.stem=imagenet: the weights have that stem")
        if self.model.weights is None and (self.transfer.frozen_epochs or self.transfer.gradual):
            problems.append(
                "transfer.frozen_epochs and transfer.gradual freeze what model.weights gives, with null a "
                "random network: use model.weights=imagenet or a file"
            )
        if self.strategy.elastic and (self.run_dir is None or not self.resume):
            problems.append(
                "strategy.elastic=true needs run_dir=... and resume=true: it goes on from the checkpoint"
            )
        if self.distill.features and (self.compile or self.strategy.name == "pipeline"):
            problems.append(
                "distill.features needs compile=false and no strategy=pipeline: it looks into the layers"
            )
        if self.diagnose.every and self.compile:
            problems.append("diagnose.every needs compile=false: compiled layers cannot be looked into")
        if problems:
            raise ValueError("; ".join(problems))
        return self
