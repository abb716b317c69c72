"""The shape of what a run reads: images, what becomes of them, and who reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from configs.fields import CLOSED, Count, NonNegativeFloat, PositiveFloat, PositiveInt, Rgb, RgbPositive, Seed


@dataclass(config=CLOSED, frozen=True)
class ProgressiveConfig:
    """Smaller training images at first; evaluation is always at the full size."""

    start_size: Annotated[int, Field(ge=32, multiple_of=32)]
    """Side in the first epoch, px; it grows linearly, in steps of 32."""
    epochs: Count
    """Until the full size; 0 is off."""


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
class RandAugmentConfig:
    """Cubuk et al. 2019, with torchvision's operations and ranges."""

    num_ops: Count
    """Operations on each image; 0 is off."""
    magnitude: Annotated[int, Field(ge=0, le=30)]
    """Of 31 bins."""


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
class _Data:
    input: InputConfig
    augment: AugmentConfig
    storage: StorageConfig
    on_bad: Literal["stop", "quarantine"]
    """What to do with images that do not decode: stop with a list of them, or leave them out and say so."""
    cache_dir: str
    """Results of the check, converted copies of images and shards that were downloaded; safe to delete."""


@dataclass(config=CLOSED, frozen=True)
class DigitsConfig(_Data):
    name: Literal["digits"]
    root: str


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
class Cifar10Config(_Data):
    name: Literal["cifar10"]
    root: str
    source: str | None
    """A local folder with train/ and test/ of class folders; null downloads the original."""


@dataclass(config=CLOSED, frozen=True)
class SyntheticConfig(_Data):
    name: Literal["synthetic"]
    root: str
    num_classes: Annotated[int, Field(ge=2, le=1000)]
    num_train: PositiveInt
    num_val: PositiveInt
    width: PositiveInt
    height: PositiveInt


Missing = Literal["stop", "drop", "impute"]


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
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


@dataclass(config=CLOSED, frozen=True)
class ShuffleConfig:
    """Every image once an epoch."""

    name: Literal["shuffle"]


@dataclass(config=CLOSED, frozen=True)
class BalancedConfig:
    """Every class equally likely; an epoch is as long as with `shuffle`."""

    name: Literal["balanced"]


@dataclass(config=CLOSED, frozen=True)
class WeightedConfig:
    """An image is drawn in proportion to weights[class] x count[class]^-power x its weight in the manifest;
    an epoch is as long as with `shuffle`."""

    name: Literal["weighted"]
    weights: dict[str, PositiveFloat] | None
    """By class name, every class; null: all alike."""
    power: NonNegativeFloat
    """0 leaves the classes' shares as they are, 0.5 is the square-root rule (Mahajan et al. 2018), 1 balances
    them."""


@dataclass(config=CLOSED, frozen=True)
class OverConfig:
    """Each class is repeated up to the size of the largest."""

    name: Literal["over"]


@dataclass(config=CLOSED, frozen=True)
class UnderConfig:
    """Each class is cut down to the size of the smallest; which images changes with the epoch."""

    name: Literal["under"]


@dataclass(config=CLOSED, frozen=True)
class BootstrapConfig:
    """As many draws with replacement as there are images, the same in every epoch (Breiman 1996)."""

    name: Literal["bootstrap"]


SamplingConfig = Annotated[
    ShuffleConfig | BalancedConfig | WeightedConfig | OverConfig | UnderConfig | BootstrapConfig,
    Field(discriminator="name"),
]


@dataclass(config=CLOSED, frozen=True)
class WriteShardsConfig:
    """`python -m data.shards`."""

    out: str
    """A folder or a URL for the shards."""
    shard_mib: PositiveInt
    """Images of one shard, MiB; a larger image has a shard of its own."""
    seed: Seed
    """Of the order in which the images are dealt to the shards."""
    data: DataConfig


@dataclass(config=CLOSED, frozen=True)
class LoaderConfig:
    name: Literal["dali", "torch"]
    threads: PositiveInt | None
    """DALI's threads or DataLoader's worker processes of each rank; null: the rank's share of the cores."""
    prefetch: PositiveInt
    """Batches kept ready."""
