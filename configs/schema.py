"""The shape of every config: typed, closed dataclasses. The values, defaults too, stand in the YAML files.

Checked by :func:`configs.load.parse`: an unknown key, a wrong type and a value out of range are refused, all
of them in one error. Below that border these are plain dataclasses.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

_CLOSED = ConfigDict(extra="forbid", strict=True)

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**24)]  # the step and the rank join it in one number of 64 bits
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rgb = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]
RgbPositive = Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)]


@dataclass(config=_CLOSED, frozen=True)
class ProgressiveConfig:
    """Smaller training images at first; evaluation is always at the full size."""

    start_size: Annotated[int, Field(ge=32, multiple_of=32)]
    """Side in the first epoch, px; it grows linearly, in steps of 32."""
    epochs: Count
    """Until the full size; 0 is off."""


@dataclass(config=_CLOSED, frozen=True)
class InputConfig:
    """What becomes the `InputSpec` of a run."""

    size: Annotated[int, Field(ge=32, multiple_of=32)]
    """Side of the square that the network sees, px; five halvings must leave a whole number."""
    resize: PositiveInt
    """Shorter side after resizing for evaluation, px; at least `size`."""
    mean: Rgb
    """Of each colour in 0..1."""
    std: RgbPositive
    progressive: ProgressiveConfig

    @model_validator(mode="after")
    def _start_is_smaller(self) -> InputConfig:
        if self.progressive.epochs and self.progressive.start_size > self.size:
            raise ValueError(
                f"progressive.start_size {self.progressive.start_size} must be at most size {self.size}"
            )
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> InputConfig:
        if self.resize < self.size:
            raise ValueError(f"resize {self.resize} must be at least size {self.size}")
        return self


@dataclass(config=_CLOSED, frozen=True)
class RandAugmentConfig:
    """Cubuk et al. 2019, with torchvision's operations and ranges."""

    num_ops: Count
    """Operations on each image; 0 is off."""
    magnitude: Annotated[int, Field(ge=0, le=30)]
    """Of 31 bins."""


@dataclass(config=_CLOSED, frozen=True)
class ErasingConfig:
    """Zhong et al. 2017; a box becomes the mean colour."""

    probability: Annotated[float, Field(ge=0, le=1)]
    """0 is off."""
    min_area: Annotated[float, Field(gt=0, lt=1)]
    """Least share of the image."""
    max_area: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _areas_in_order(self) -> ErasingConfig:
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area:g} must be at most max_area {self.max_area:g}")
        return self


@dataclass(config=_CLOSED, frozen=True)
class AugmentConfig:
    """What happens to the training images alone, in this order: random resized crop, RandAugment, horizontal
    flip, random erasing."""

    min_scale: Annotated[float, Field(gt=0, le=1)]
    """Least share of the image's area that a crop keeps; 1 turns the crop off."""
    max_ratio: Annotated[float, Field(ge=1)]
    """Aspect ratios are drawn from 1/max_ratio to max_ratio."""
    flip: bool
    randaugment: RandAugmentConfig
    erasing: ErasingConfig


@dataclass(config=_CLOSED, frozen=True)
class StorageConfig:
    """How images in an object store or in shards are reached."""

    retries: Count
    """Further tries after a request that failed: refused, too slow, cut off or short."""
    backoff_s: PositiveFloat
    """Before the second try; doubled before each further one, up to half a minute."""
    timeout_s: PositiveFloat
    """Of one try to read one image, or one part of a shard."""
    concurrency: PositiveInt
    """Requests at a time of one process."""
    cache_gib: PositiveFloat
    """Of shards below `cache_dir`; more are kept only while all are in use."""
    shuffle_shards: PositiveInt
    """Shards that are mixed at a time when training reads shards."""


@dataclass(config=_CLOSED, frozen=True)
class _Data:
    input: InputConfig
    augment: AugmentConfig
    storage: StorageConfig
    on_bad: Literal["stop", "quarantine"]
    """What to do with images that do not decode: stop with a list of them, or leave them out and say so."""
    cache_dir: str
    """Results of the check, converted copies of images and shards that were downloaded; safe to delete."""


@dataclass(config=_CLOSED, frozen=True)
class DigitsConfig(_Data):
    name: Literal["digits"]
    root: str


@dataclass(config=_CLOSED, frozen=True)
class ImageFolderConfig(_Data):
    name: Literal["image_folder"]
    root: str
    """A folder or a URL such as s3://bucket/photos."""
    train_split: str
    """Folder below `root` with a folder a class. Where `root` itself holds the class folders, both splits
    are cut from it."""
    val_split: str
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share held out, stratified, where `root` has no split folders."""

    @model_validator(mode="after")
    def _splits_differ(self) -> ImageFolderConfig:
        if self.train_split == self.val_split:
            raise ValueError(f"train_split and val_split are both {self.val_split!r}: they must differ")
        return self


@dataclass(config=_CLOSED, frozen=True)
class Cifar10Config(_Data):
    name: Literal["cifar10"]
    root: str
    source: str | None
    """A local folder with train/ and test/ of class folders; null downloads the original."""


@dataclass(config=_CLOSED, frozen=True)
class SyntheticConfig(_Data):
    name: Literal["synthetic"]
    root: str
    num_classes: Annotated[int, Field(ge=2, le=1000)]
    num_train: PositiveInt
    num_val: PositiveInt
    width: PositiveInt
    height: PositiveInt


Missing = Literal["stop", "drop", "impute"]


@dataclass(config=_CLOSED, frozen=True)
class ColumnsConfig:
    """Names in the manifest's header; split, weight and group may be absent there."""

    path: str
    label: str
    split: str
    weight: str
    group: str

    @model_validator(mode="after")
    def _names_differ(self) -> ColumnsConfig:
        names = [self.path, self.label, self.split, self.weight, self.group]
        if len(set(names)) < len(names):
            raise ValueError(f"the columns are {names}: their names must differ")
        return self


@dataclass(config=_CLOSED, frozen=True)
class ManifestConfig(_Data):
    name: Literal["manifest"]
    root: str
    csv: str
    """A path in `root`, or a whole one."""
    relative_to: Literal["csv", "root"]
    """What the paths in it are relative to: the folder of the CSV file, or `root`."""
    columns: ColumnsConfig
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share held out, stratified, where there is no column of splits."""
    on_missing_label: Missing
    """impute: the most frequent label of the group."""
    on_missing_file: Missing
    """impute: another image of the same class and split."""
    on_missing_weight: Missing
    """Of a training image; impute: the median of its class."""


@dataclass(config=_CLOSED, frozen=True)
class ShardsConfig(_Data):
    name: Literal["shards"]
    root: str
    """A folder or a URL that `python -m data.shards` wrote."""
    val_root: str | None
    """Where the validation shards are, if not below `root`."""


DataConfig = Annotated[
    DigitsConfig | ImageFolderConfig | Cifar10Config | SyntheticConfig | ManifestConfig | ShardsConfig,
    Field(discriminator="name"),
]


@dataclass(config=_CLOSED, frozen=True)
class ShuffleConfig:
    """Every image once an epoch."""

    name: Literal["shuffle"]


@dataclass(config=_CLOSED, frozen=True)
class BalancedConfig:
    """Every class equally likely; an epoch is as long as with `shuffle`."""

    name: Literal["balanced"]


@dataclass(config=_CLOSED, frozen=True)
class WeightedConfig:
    """An image is drawn in proportion to weights[class] x count[class]^-power x its weight in the manifest;
    an epoch is as long as with `shuffle`."""

    name: Literal["weighted"]
    weights: dict[str, PositiveFloat] | None
    """By class name, every class; null: all alike."""
    power: NonNegativeFloat
    """0 leaves the classes' shares as they are, 0.5 is the square-root rule (Mahajan et al. 2018), 1 balances
    them."""


@dataclass(config=_CLOSED, frozen=True)
class OverConfig:
    """Each class is repeated up to the size of the largest."""

    name: Literal["over"]


@dataclass(config=_CLOSED, frozen=True)
class UnderConfig:
    """Each class is cut down to the size of the smallest; which images changes with the epoch."""

    name: Literal["under"]


@dataclass(config=_CLOSED, frozen=True)
class BootstrapConfig:
    """As many draws with replacement as there are images, the same in every epoch (Breiman 1996)."""

    name: Literal["bootstrap"]


SamplingConfig = Annotated[
    ShuffleConfig | BalancedConfig | WeightedConfig | OverConfig | UnderConfig | BootstrapConfig,
    Field(discriminator="name"),
]


@dataclass(config=_CLOSED, frozen=True)
class WriteShardsConfig:
    """`python -m data.shards`."""

    out: str
    """A folder or a URL for the shards."""
    shard_mib: PositiveInt
    """Images of one shard, MiB; a larger image has a shard of its own."""
    seed: Seed
    """Of the order in which the images are dealt to the shards."""
    data: DataConfig


@dataclass(config=_CLOSED, frozen=True)
class LoaderConfig:
    name: Literal["dali", "torch"]
    threads: PositiveInt | None
    """DALI's threads or DataLoader's worker processes of each rank; null: the rank's share of the cores."""
    prefetch: PositiveInt
    """Batches kept ready."""


ModelName = Literal["resnet8", "resnet20", "resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"]


@dataclass(config=_CLOSED, frozen=True)
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


@dataclass(config=_CLOSED, frozen=True)
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


@dataclass(config=_CLOSED, frozen=True)
class SgdConfig(_Optim):
    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true needs momentum above 0")
        return self


@dataclass(config=_CLOSED, frozen=True)
class AdamWConfig(_Optim):
    name: Literal["adamw"]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: PositiveFloat


OptimConfig = Annotated[SgdConfig | AdamWConfig, Field(discriminator="name")]


@dataclass(config=_CLOSED, frozen=True)
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


@dataclass(config=_CLOSED, frozen=True)
class LossConfig:
    name: Literal["cross_entropy", "focal"]
    gamma: NonNegativeFloat
    """Of the focal loss."""
    class_balance: Annotated[float, Field(ge=0, le=1)]
    """Classes weigh count to the power of minus this: 0 all alike, 1 the inverse of their frequency."""


@dataclass(config=_CLOSED, frozen=True)
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


@dataclass(config=_CLOSED, frozen=True)
class EarlyStopConfig:
    patience: Count
    """Epochs without a better score after which a run ends; 0 is off."""
    min_delta: NonNegativeFloat
    """What counts as better, in the score's own unit (shares of 1)."""


@dataclass(config=_CLOSED, frozen=True)
class TransferConfig:
    """How the stages of a network that starts from `model.weights` come to train."""

    frozen_epochs: Count
    """Epochs at the start in which only the head trains."""
    gradual: Count
    """Epochs between two stages that thaw, from the head to the stem; 0 thaws all at once."""
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    """A stage k below the head trains with lr x lr_decay^k; 1 is off."""


@dataclass(config=_CLOSED, frozen=True)
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


@dataclass(config=_CLOSED, frozen=True)
class DiagnoseConfig:
    every: Count
    """Steps between two looks at the gradients and activations of every layer; 0 is off."""


@dataclass(config=_CLOSED, frozen=True)
class ProfileConfig:
    start: Count
    """Step after which rank 0's trace begins."""
    steps: Count
    """That it lasts; 0 is off."""


@dataclass(config=_CLOSED, frozen=True)
class WandbConfig:
    """Weights & Biases, beside TensorBoard."""

    project: str | None
    """null is off."""
    mode: Literal["online", "offline"]
    """offline: kept in the run folder until `wandb sync`."""


@dataclass(config=_CLOSED, frozen=True)
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


CalibrationMethod = Literal["max", "percentile", "entropy", "mse"]
Percentile = Annotated[float, Field(gt=50, le=100)]


@dataclass(config=_CLOSED, frozen=True)
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


@dataclass(config=_CLOSED, frozen=True)
class BenchConfig:
    threads: PositiveInt | None
    """null: all usable cores."""
    seconds: PositiveFloat
    """Of measuring for each variant and batch size."""
    batches: Annotated[list[PositiveInt], Field(min_length=1)]
    """Latency is taken at the smallest, throughput at the largest."""


@dataclass(config=_CLOSED, frozen=True)
class GateConfig:
    max_drop: NonNegativeFloat
    """Points of top-1 that a result may be below the checkpoint that it came from."""
    ship_failed: bool
    """Whether a variant that falls through goes into the bundle all the same."""


@dataclass(config=_CLOSED, frozen=True)
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
    calibration: CalibrationConfig
    gate: GateConfig
    bench: BenchConfig
    num_samples: Annotated[int, Field(ge=1, le=64)]
    """Images that travel in the bundle with their expected outputs."""
