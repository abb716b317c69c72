"""Checkpoints of which every rank writes its own slices while training goes on.

A folder `step-NNNNNNNN` is whole once it has its `.metadata`, which is written last. Any number of ranks
can read it. (torch.distributed.checkpoint)
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from deploy.errors import LabError
from train.checkpoint import (
    Checkpoint,
    UnreadableError,
    checkpoint_from,
    facts_of,
    read_facts,
    require_intact,
    write_facts,
)
from train.state import empty_optimizer_tensors

FOLDER = "sharded"
FACTS = "run.pt"
KEPT = 2
"""Whole checkpoints: the latest and the one that a run falls back to."""


class ShardedWriter:
    """Saves of one run, one at a time."""

    def __init__(self, run_dir: Path, on_first: Callable[[Callable[[], None]], None]) -> None:
        self._folder = run_dir / FOLDER
        self._on_first = on_first
        self._pending: Future[Any] | None = None
        # Of its own: the writing thread talks to its peers while the loop does the same.
        self._group: Any = dist.new_group(backend="gloo")

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy the tensors to the CPU and return; called on every rank. Raises LabError where the save before
        this one has failed."""
        self.wait()
        target = self._folder / f"step-{checkpoint.progress.step:08d}"

        def begin() -> None:
            for old in sharded_folders(self._folder.parent)[KEPT:]:
                shutil.rmtree(old)
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            write_facts(target / FACTS, facts_of(checkpoint))

        self._on_first(begin)
        tensors = {f"model/{name}": value for name, value in checkpoint.model.items()}
        tensors |= {f"ema/{name}": value for name, value in (checkpoint.ema or {}).items()}
        tensors |= {f"optimizer/{name}": value for name, value in checkpoint.optimizer.items()}
        future = async_save(
            tensors,
            storage_writer=FileSystemWriter(target, sync_files=True, overwrite=True),
            # Rank 0's BatchNorm statistics are the ones that count.
            planner=DefaultSavePlanner(dedup_save_to_lowest_rank=True),
            process_group=self._group,
        )
        self._pending = cast("Future[Any]", future)

    def wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (Exception, CheckpointException) as error:
            free = shutil.disk_usage(self._folder).free >> 20
            raise LabError(
                f"a checkpoint below {self._folder} could not be written ({_cause(error)}); {free} "
                "MiB are free there, the one before is untouched: make room, then go on with resume=true"
            ) from error


def sharded_folders(run_dir: Path) -> list[Path]:
    """Whole checkpoints, newest first."""
    return sorted((path.parent for path in run_dir.glob(f"{FOLDER}/step-*/.metadata")), reverse=True)


def read_sharded(
    folder: Path,
    model: nn.Module | None = None,
    ema: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Checkpoint:
    """Into the live network, average and optimiser, this rank's slices of them; without those, whole tensors.

    Raises UnreadableError.
    """
    facts = read_facts(folder / FACTS)
    try:
        reader = _Reader(folder)
        stored = cast(dict[str, TensorStorageMetadata], reader.read_metadata().state_dict_metadata)
        parts: dict[str, dict[str, Any]] = {"model": {}, "ema": {}, "optimizer": {}}
        for key, entry in stored.items():
            part, _, name = key.partition("/")
            parts[part][name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        if model is not None and optimizer is not None:
            parts["model"] = model.state_dict()
            parts["ema"] = ema.state_dict() if ema is not None else {}
            parts["optimizer"] = empty_optimizer_tensors(optimizer, model, parts["optimizer"])
        tensors = {f"{part}/{name}": value for part, named in parts.items() for name, value in named.items()}
        # Each rank by itself: a rank that cannot read must not leave the others waiting.
        load(tensors, storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise UnreadableError(
            f"{folder} cannot be read: truncated, damaged, or not written by edgelab ({_cause(error)})"
        ) from error
    return checkpoint_from(facts, parts["model"], parts["ema"] or None, parts["optimizer"])


def _cause(error: BaseException) -> str:
    """A CheckpointException's words are the tracebacks of the ranks: the last line says what it was."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" )")]
    return lines[-1][:300] if lines else type(error).__name__


class _Reader(FileSystemReader):
    """Opens a checkpoint without running code that is in it, and notices what is no longer as it was written:
    torch's own reader unpickles anything, and takes any bits for a tensor."""

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        # In memory, one slice at a time: torch's view of a part of a file cannot seek from its end.
        part = io.BytesIO(super()._slice_file(file, sinfo).read())
        require_intact(part)
        return part

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = cast(Metadata, _Unpickler(file).load())
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        ours = module.split(".")[0] in ("torch", "collections", "pathlib")
        found = super().find_class(module, name) if ours else None
        if isinstance(found, torch.dtype) or found in _METADATA_FUNCTIONS:
            return found
        if isinstance(found, type) and f"{found.__module__}.{found.__name__}" in _METADATA_TYPES:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


_METADATA_FUNCTIONS = (torch.serialization._get_layout,)
_METADATA_TYPES = frozenset(
    {
        "torch.Size",
        "collections.OrderedDict",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",  # Python 3.13
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        *(
            f"torch.distributed.checkpoint.metadata.{name}"
            for name in (
                "Metadata", "MetadataIndex", "StorageMeta", "ChunkStorageMetadata", "TensorProperties",
                "TensorStorageMetadata", "BytesStorageMetadata", "_MEM_FORMAT_ENCODING",
            )
        ),
    }
)  # fmt: skip
