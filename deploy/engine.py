"""The engine of a variant on this machine: taken from the cache where it fits, else built and looked into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any

from deploy.build_lock import DEFAULT_PATH, build_lock
from deploy.cuda import Cuda, Device
from deploy.engine_build import DEFAULT_BATCH, BuildOptions, Plan, build_plan
from deploy.engine_cache import (
    Key,
    Record,
    engines_folder,
    make_folder,
    read_record,
    record_path,
    slug,
    why_not,
    write_engine,
    write_whole,
)
from deploy.engine_layers import Precision, read_layers, weigh
from deploy.errors import LabError
from deploy.machine import available_memory_bytes
from deploy.manifest import Bundle, Variant
from deploy.trt_api import TensorRT
from deploy.trt_types import Engine, sides

_ROOM = 16 << 20  # beyond the network itself
_BF16_SINCE = 8.0  # compute capability

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What engines are built for: the GPU of this machine, or with TensorRT-RTX those of other machines.

    device: None for the latter, and then `compute_capabilities` names them.
    """

    api: TensorRT
    cuda: Cuda
    device: Device | None
    compute_capabilities: tuple[str, ...] = ()

    def __str__(self) -> str:
        return str(self.device or f"compute capability {', '.join(self.compute_capabilities)}")

    @property
    def slug(self) -> str:
        return slug(self.device.name if self.device else "sm" + "-sm".join(self.compute_capabilities))


@dataclass(frozen=True)
class BuiltEngine:
    """An engine file that fits this machine, and its record. built: whether it was made just now."""

    path: Path
    record: Record
    built: bool
    unkept: Any = None
    """The engine itself, where no file of it could be written."""


def find_target(api: TensorRT, cuda: Cuda, compute_capabilities: tuple[str, ...] = ()) -> Target:
    """This machine's GPU unless others are named. Raises LabError where there is none, or none that fits."""
    if compute_capabilities:
        api.check_capabilities(compute_capabilities)
        return Target(api, cuda, None, compute_capabilities)
    try:
        device = cuda.device()
        api.capabilities_for(device.compute_capability)
    except LabError as error:
        if not api.rtx:
            raise
        raise LabError(
            f"{error}\n{api} also builds without a GPU, for others: python -m deploy build BUNDLE "
            "--compute-capability 8.6"
        ) from error
    return Target(api, cuda, device)


def ready_engine(
    bundle: Bundle,
    variant: str,
    target: Target,
    options: BuildOptions | None,
    say: Say,
    *,
    cache: Path | None = None,
    force: bool = False,
    must_keep: bool = True,
    lock: Path = DEFAULT_PATH,
) -> BuiltEngine:
    """The engine of a variant, built where none fits; why is said.

    options: None is for whoever only runs: those that the engine was built with last, or the defaults.
    cache: a folder for the engines of many bundles; see `engines_folder`. force: build in any case.
    must_keep: False for whoever can do with one that no file could be written of.
    Raises LabError; an engine that was there stays until a new one is whole.
    """
    entry = bundle.variant(variant)
    _check_precision(entry, target)
    place = engines_folder(bundle, cache)
    path = place / f"{variant}.{target.slug}.engine"
    options = options or _last_options(path)
    key = _key(bundle.files[entry.file], target, options)
    found, reasons = (None, ["asked for"]) if force else _lookup(path, key)
    if found is not None:
        return BuiltEngine(path, found, built=False)
    for reason in reasons:
        say(f"{variant}: {reason}: building anew")
    model = bundle.path(variant)
    room = 2 * model.stat().st_size * max(1, len(target.compute_capabilities)) + _ROOM
    kept = _kept(lambda: make_folder(place, room), variant, must_keep, say)
    with build_lock(f"{variant} of {bundle.name}", say, lock):
        # Whoever was waited for may have built this very engine.
        found = None if force else _lookup(path, key)[0]
        if found is not None:
            return BuiltEngine(path, found, built=False)
        plan, record, timing = _build(bundle, variant, target, options, key, path, say)

        def write() -> None:
            write_engine(path, plan.data, record)
            if plan.timings is not None:
                write_whole(timing, plan.timings)

        kept = kept and _kept(write, variant, must_keep, say)
        return BuiltEngine(path, record, built=True, unkept=None if kept else plan.data)


def _kept(write: Callable[[], None], variant: str, must: bool, say: Say) -> bool:
    """Whether it could be written; where it could not, that is said. Raises its LabError where it must be."""
    try:
        write()
    except LabError as error:
        if must:
            raise
        say(f"WARNING: {variant}: {error}. This time it runs all the same, and is built anew the next time")
        return False
    return True


def check_engine(path: Path, target: Target) -> Record:
    """The record of an engine that is given by its file.

    Raises LabError, with every difference, where it is not of this TensorRT and this device, or is damaged.
    """
    record = read_record(path)
    now = replace(record.key, tensorrt=str(target.api), device=str(target))
    if reasons := why_not(path, record, now):
        raise LabError(
            f"{path}: this engine does not run here: {'; '.join(reasons)}. An engine belongs to one "
            "TensorRT on one kind of GPU: build it here, from the bundle, with `python -m deploy build`"
        )
    return record


def _lookup(path: Path, key: Key) -> tuple[Record | None, list[str]]:
    """(the record of a fresh engine or None, why there is none: empty where none was ever built)."""
    if not path.exists() and not record_path(path).exists():
        return None, []
    try:
        record = read_record(path)
    except LabError as error:
        return None, [str(error)]
    reasons = why_not(path, record, key)
    return (None if reasons else record), reasons


def _last_options(path: Path) -> BuildOptions:
    """What an engine that stands there was built with, fresh or not; the defaults where none does."""
    try:
        flags = read_record(path).key.flags
        least, common, most = flags["batch"]
        batch = None if (least, common, most) == DEFAULT_BATCH else (least, common, most)
        return BuildOptions(batch, flags["workspace_mib"], flags["tf32"])
    except (LabError, KeyError, TypeError, ValueError):  # it is about to be built anew, for another reason
        return BuildOptions()


def _key(onnx_sha256: str, target: Target, options: BuildOptions) -> Key:
    flags: dict[str, Any] = {
        "batch": list(options.batch or DEFAULT_BATCH),
        "workspace_mib": options.workspace_mib,
        "tf32": options.tf32,
    }
    return Key(onnx_sha256, str(target.api), str(target), flags)


def _build(
    bundle: Bundle, variant: str, target: Target, options: BuildOptions, key: Key, path: Path, say: Say
) -> tuple[Plan, Record, Path]:
    """The plan, its record, and where the timings of its kernels are kept."""
    timing = path.with_name(f"{slug(str(target.api))}.{target.slug}.timing")
    plan = build_plan(
        target.api,
        bundle.path(variant).read_bytes(),
        options,
        label=str(bundle.path(variant)),
        compute_capabilities=_aims(target),
        workspace_bytes=_workspace_bytes(target, options),
        timings=timing.read_bytes() if timing.is_file() else b"",
    )
    data = memoryview(plan.data)
    record = Record(
        variant=variant,
        key=key,
        engine_sha256=sha256(data).hexdigest(),
        engine_bytes=data.nbytes,
        batch=plan.batch,
        build_s=round(plan.seconds, 1),
        precision=_read_back(target, plan, path, say),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return plan, record, timing


def _aims(target: Target) -> tuple[str, ...]:
    """The compute capabilities that TensorRT is told to build for; none: it goes by this machine's GPU."""
    if target.device is None:
        return target.compute_capabilities
    return target.api.capabilities_for(target.device.compute_capability)


def _workspace_bytes(target: Target, options: BuildOptions) -> int | None:
    """Half of what is free where CPU and GPU share it: the builder itself and the system need the rest."""
    if options.workspace_mib is not None:
        return options.workspace_mib << 20
    if target.device is None:
        return None
    if not target.device.integrated:
        return target.cuda.free_bytes()
    available = available_memory_bytes()
    return None if available is None else available // 2


def _read_back(target: Target, plan: Plan, path: Path, say: Say) -> Precision | None:
    """What the layers compute in, by the engine's own account; None, with a word, where none is to be had."""
    if target.device is None:
        return None
    engine = target.api.open_engine(plan.data, str(path))
    context = target.api.context(engine)
    set_batch(engine, context, plan.batch[1])
    try:
        layers = read_layers(target.api.engine_information(engine, context))
    except LabError as error:
        say(f"WARNING: {error}")
        return None
    return weigh(layers, plan.quantised)


def set_batch(engine: Engine, context: Any, batch: int) -> None:
    """Give a context the shapes of this batch."""
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        shape = sides(engine.get_tensor_shape(name))
        if engine.get_tensor_mode(name).name == "INPUT":
            context.set_input_shape(name, (batch if shape[0] == -1 else shape[0], *shape[1:]))


def _check_precision(variant: Variant, target: Target) -> None:
    own = target.device.compute_capability if target.device else None
    capabilities = target.compute_capabilities if own is None else (own,)
    old = [name for name in capabilities if float(name) < _BF16_SINCE]
    if variant.precision == "bf16" and old:
        raise LabError(
            f"variant {variant.name}: BF16 needs compute capability {_BF16_SINCE} or more, this is for "
            f"{', '.join(old)}: take the fp16 or int8 variant"
        )
