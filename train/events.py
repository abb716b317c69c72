"""One TensorBoard event file a run, also when the run was killed and went on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

IsPast = Callable[[str, int], bool]
"""Whether a record of a kind (train, eval) at a step was made before the checkpoint to go on from."""
NAME = "events.out.tfevents.0000000000.edgelab"


class EventLog:
    """Appends to `folder`'s event file; what a killed run wrote beyond its checkpoint is taken out first.

    torch's SummaryWriter starts a new file each time, and TensorBoard then shows steps that the continued run
    did over as if they had happened twice.
    """

    def __init__(self, folder: Path, is_past: IsPast) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        kept = (
            _past_events(path, is_past)
            if path.exists()
            else [Event(wall_time=time.time(), file_version="brain.Event:2")]
        )
        temporary = path.with_name(f".{NAME}.tmp")
        with temporary.open("wb") as file:
            writer = RecordWriter(file)
            for event in kept:
                writer.write(event.SerializeToString())
            writer.flush()
        os.replace(temporary, path)
        self._writer = RecordWriter(path.open("ab"))

    def add(self, summary: Summary, step: int) -> None:
        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _past_events(path: Path, is_past: IsPast) -> list[Event]:
    return [
        event
        for event in LegacyEventFileLoader(str(path)).Load()
        if event.file_version
        or all(is_past(value.tag.split("/")[0], event.step) for value in event.summary.value)
    ]
