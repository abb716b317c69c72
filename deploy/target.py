"""What a device can do, as `configs/target/NAME.yaml` says it: clocks, peaks, memory, DLA, JetPacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deploy.errors import LabError

TARGET_DIR = Path(__file__).resolve().parents[1] / "configs" / "target"
JETPACKS = TARGET_DIR.with_name("jetpacks.yaml")
Kind = Literal["jetson", "gpu", "cpu"]
Precision = Literal["fp4", "fp8", "int8", "bf16", "fp16", "tf32", "fp32"]
DlaRoute = Literal["calibration-cache", "strongly-typed", "none"]
DLA_BACKEND = "tensorrt-dla"
"""Of a variant that DLA takes by a calibration cache."""
SourceKind = Literal["documented", "secondary", "derived", "unverified"]


@dataclass(frozen=True)
class PowerMode:
    """One setting of `nvpmodel`, by its name there; a card that has no such modes has one, `default`."""

    name: str
    num_sms: int
    gpu_mhz: float
    """The highest clock that the mode allows; what a device reaches under load may be less."""
    memory_gb_per_s: float
    """10^9 bytes a second, as the memory's clock and width give them; no program sees all of it."""
    watts: float | None
    """Budget of the module or card; null where the mode has none or it is not known."""
    dla_mhz: tuple[float, ...]
    """Of each DLA core, for the modes of some modules all but stop one of them; empty without DLA."""


@dataclass(frozen=True)
class Dla:
    """Each core by itself. One query runs on one core."""

    num_cores: int
    ops_per_clock_per_core: Mapping[Precision, float | None]
    """Dense, a multiply-add counts 2; null: it runs, how fast is not known."""
    max_loadables_per_core: int
    """How many separate pieces of networks a core holds at a time."""


@dataclass(frozen=True)
class JetPack:
    """A release of NVIDIA's software for Jetson, as `configs/jetpacks.yaml` has it, on one target."""

    version: str
    jetson_linux: str
    python: str
    cuda: str
    tensorrt: str
    dla: DlaRoute
    """How INT8 reaches DLA: by a calibration cache beside a float network, by Q/DQ, or not at all."""
    why: str
    """A plain sentence about `dla` for who reads the bundle."""
    source_kind: SourceKind
    source: str


@dataclass(frozen=True)
class Advertised:
    """The maker's headline figure, in 10^12 operations a second, to hold the derived peaks against."""

    tops: float
    precision: Precision
    sparse: bool
    """Counted with 2:4 sparsity: twice the dense rate."""
    with_dla: bool
    mode: str


@dataclass(frozen=True)
class Source:
    """Where figures come from. `derived`: computed here from others; `unverified`: no source was at hand."""

    figures: tuple[str, ...]
    """Dotted keys, `*` for any part: power_modes.MAXN.gpu_mhz, power_modes.*.watts. Of several sources that
    name a figure the first counts."""
    kind: SourceKind
    text: str


@dataclass(frozen=True)
class Target:
    name: str
    title: str
    kind: Kind
    compute_capability: str | None
    memory_gib: float | None
    shared_memory: bool
    """The CPU's memory is the accelerator's: no copy between the two is needed."""
    l2_cache_mib: float | None
    """Of the GPU."""
    ops_per_clock_per_sm: Mapping[Precision, float | None]
    """Dense, a multiply-add counts 2. What is absent does not run; null: it runs, its peak is measured."""
    default_mode: str | None
    power_modes: tuple[PowerMode, ...]
    dla: Dla | None
    jetpacks: tuple[JetPack, ...]
    advertised: tuple[Advertised, ...]
    estimate_only: bool
    """Nothing is built or promised for it; its figures serve `python -m deploy estimate` alone."""
    sources: tuple[Source, ...]

    def mode(self, name: str | None = None) -> PowerMode:
        """By name in either case, or the default one. Raises LabError with the names there are."""
        wanted = name or self.default_mode
        for mode in self.power_modes:
            if wanted is not None and mode.name.lower() == wanted.lower():
                return mode
        if not self.power_modes:
            raise LabError(
                f"target {self.name}: has no power modes, for its ceilings are measured where it runs"
            )
        names = ", ".join(mode.name for mode in self.power_modes)
        raise LabError(f"target {self.name}: no power mode {wanted!r}; there are: {names}")

    def supports(self, precision: str) -> bool:
        return precision in self.ops_per_clock_per_sm

    def peak_tops(self, precision: Precision, mode: str | None = None) -> float | None:
        """Dense, of the GPU alone, 10^12 operations a second: SMs x clock x operations per clock and SM.

        None where the rate is not known. Raises LabError for a precision that the target does not have.
        """
        if precision not in self.ops_per_clock_per_sm:
            raise LabError(self.lacks(precision))
        rate = self.ops_per_clock_per_sm[precision]
        if rate is None:
            return None
        chosen = self.mode(mode)
        return chosen.num_sms * chosen.gpu_mhz * rate / 1e6

    def dla_peak_tops(self, precision: Precision, mode: str | None = None) -> float | None:
        """Dense, of all DLA cores together; 0.0 without DLA, None where the rate is not known."""
        if self.dla is None:
            return 0.0
        rate = self.dla.ops_per_clock_per_core.get(precision)
        return None if rate is None else sum(self.mode(mode).dla_mhz) * rate / 1e6

    def lacks(self, precision: str) -> str:
        """What to tell a user who asks for a precision that is not here."""
        there_are = ", ".join(self.ops_per_clock_per_sm)
        return f"target {self.name}: {self.title} has no {precision}; it has: {there_are}"


def target_names() -> list[str]:
    """Every target there is, sorted. Raises LabError where the folder of `configs/target` is not."""
    if not TARGET_DIR.is_dir():
        raise LabError(f"{TARGET_DIR}: not there; copy the folder configs/ beside deploy/")
    return sorted(path.stem for path in TARGET_DIR.glob("*.yaml"))


def load_target(name: str) -> Target:
    """`orin_nano_8gb`, or `orin_nano_8gb:MAXN_SUPER` for the same with another power mode as its default.

    Raises LabError for an unknown name, for PyYAML missing, and for a file with mistakes: all of them.
    """
    stem, _, mode = name.partition(":")
    if stem not in target_names():
        raise LabError(
            f"target {stem!r}: unknown, there are: {', '.join(target_names())}; a power mode, Super too, "
            "is asked for as NAME:MODE, such as orin_nano_8gb:MAXN_SUPER"
        )
    from deploy.target_file import read_target

    target = read_target(TARGET_DIR / f"{stem}.yaml")
    return replace(target, default_mode=target.mode(mode).name) if mode else target
