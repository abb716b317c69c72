"""tegrastats, NVIDIA's own reader of a Jetson's state, for where its power monitors cannot be read as files.

It prints a line an interval, the rails at its end (developer guide of Jetson Linux, tegrastats utility):

    POM_5V_IN 1750/1628 POM_5V_GPU 0/0                  JetPack 4, milliwatts now and on average
    VDD_IN 4162mW/4162mW VDD_CPU_GPU_CV 492mW/492mW     JetPack 5 and 6
    VDD_GPU 37528mW/37528mW/37528mW                     JetPack 7.2
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from deploy.errors import LabError
from deploy.power import PowerMeter, PowerSample
from deploy.power_rails import telling_rail
from deploy.system_files import is_there

_INTERVAL_MS = 100
_PATIENCE_S = 5.0
# Memory (`RAM 1923/3964MB`), clocks (`EMC_FREQ 0%@1600`) and temperatures (`GPU@40C`) have other forms.
_RAIL = re.compile(r"(?<!\S)([A-Z]\w*) (-?\d+)(?:mW(?:/-?\d+mW)*|/-?\d+)(?!\S)")
_UNCONNECTED = "NC"


def rails_of(line: str) -> dict[str, float]:
    """Watts of each rail at the moment of the line; empty for a line that tells no power."""
    return {name: int(now) / 1e3 for name, now in _RAIL.findall(line) if name != _UNCONNECTED}


class TegrastatsMeter:
    """A running tegrastats. See :class:`deploy.power.PowerMeter`."""

    source = "tegrastats"
    hertz = 1e3 / _INTERVAL_MS

    def __init__(self, command: Path) -> None:
        self._command = command
        self._news = threading.Condition()
        self._latest: PowerSample | None = None
        self._told: PowerSample | None = None
        self._end: str | None = None
        try:
            self._process = subprocess.Popen(
                [str(command), "--interval", str(_INTERVAL_MS)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # so that what it starts ends with it, and lets go of the pipe
            )
        except OSError as error:
            raise LabError(
                f"power: {command} cannot be started ({error}); reinstall nvidia-l4t-tools"
            ) from error
        # Read all the time: lines that waited in the pipe would be taken for the present.
        self._reader = threading.Thread(target=self._listen, name="tegrastats", daemon=True)
        self._reader.start()
        try:
            first = self.read().watts
        except LabError:
            self._stop()
            raise
        self.rails = tuple(first)
        self.rail = telling_rail([name for name in first if "+" not in name])[0]

    def read(self) -> PowerSample:
        """The next line that has not been told yet."""
        with self._news:
            came = self._news.wait_for(lambda: self._end or self._latest is not self._told, _PATIENCE_S)
            if self._latest is not None and self._latest is not self._told:
                self._told = self._latest
                return self._latest
        if not came:
            raise LabError(
                f"power: {self._command} printed no rail for {_PATIENCE_S:g} s; run it by hand and see "
                "what it says"
            )
        raise LabError(f"power: {self._command} ended: {self._end}; run it by hand and see what it says")

    def __enter__(self) -> TegrastatsMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        for end in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, end)
            self._reader.join(_PATIENCE_S)
            if not self._reader.is_alive():
                break

    def _listen(self) -> None:
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            last = line.strip() or last
            watts = rails_of(line)
            if not watts:
                continue
            rail, summed = telling_rail(tuple(watts))
            if rail not in watts:
                watts[rail] = sum(watts[name] for name in summed)
            with self._news:
                self._latest = PowerSample(time.monotonic(), watts)
                self._news.notify_all()
        self._process.stdout.close()
        code = self._process.wait()
        with self._news:
            self._end = f"exit code {code}" + (f", {last[:120]!r}" if last else "")
            self._news.notify_all()


def find_tegrastats(root: Path) -> PowerMeter | None:
    """Started, and known to tell rails; None where there is no tegrastats. Raises LabError."""
    command = root / "usr/bin/tegrastats"
    return TegrastatsMeter(command) if is_there(command) else None
