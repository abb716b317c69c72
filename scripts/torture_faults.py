"""A training run with one fault: `python -m scripts.torture_faults FAULT [key=value ...]`, or by torchrun.

The product knows nothing of this: the fault is hung into its functions from here, in the child process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
import torch.distributed as dist

from configs.load import run_command
from configs.schema import TrainConfig
from train import loop, monitor, run, saves, window
from train.__main__ import main
from train.metrics import EvalCounts


@dataclass(frozen=True)
class Fault:
    what: str
    """kill, kill all, terminate, fill, hang in Python, hang in C, hang in a collective, or nan."""
    where: str
    """step, update, write, file, evaluation, evaluated, saving or batch: see `_hang_in`."""
    at: int = 1
    """The how-many-th such moment of this life, from 1; for write and file, the save."""
    after: float = 0.0
    """step: seconds; write: bytes; file: operations; nan: how many steps; fill: bytes that stay free."""
    rank: int = 0
    note: str = ""
    """A file that gets a line when it happens; for fill, the folder of the disk."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        unit = {"step": f" + {self.after:.2f} s", "write": f", byte {self.after:,.0f}",
                "file": f", operation {self.after:.0f}"}  # fmt: skip
        return f"{self.what}, rank {self.rank}: {self.where} {self.at}{unit.get(self.where, '')}"


class Injector:
    """Counts the moments of one life and lets the fault happen at its own."""

    def __init__(self, fault: Fault, run_dir: str) -> None:
        self.fault = fault
        self.happened = False
        self.saves = 0
        self.amount = 0.0
        self._run_dir = run_dir
        self._counts: Counter[str] = Counter()

    def reach(self, where: str) -> None:
        self._counts[where] += 1
        if where != self.fault.where or self._counts[where] != self.fault.at:
            return
        if where == "step" and self.fault.after and self.fault.what != "nan":
            threading.Timer(self.fault.after, self.strike, ("timer",)).start()
        else:
            self.strike(where)

    def write(self, file: BinaryIO, data: Any) -> int:
        """Of a save; up to the very byte."""
        left = int(self.fault.after - self.amount)
        if self._in_save("write") and left < len(memoryview(data).cast("B")):
            file.write(memoryview(data).cast("B")[: max(left, 0)])
            file.flush()
            self.strike(f"write into {getattr(file, 'name', 'a buffer')}")
        self.amount += len(memoryview(data).cast("B"))
        return file.write(data)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Before every operation on the run's files that Python tells of."""
        changes = event in ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        )
        if not changes or not self._in_save("file") or not str(arguments[0]).startswith(self._run_dir):
            return
        self.amount += 1
        if self.amount >= self.fault.after:
            self.strike(f"{event} {Path(str(arguments[0])).name}")

    def _in_save(self, where: str) -> bool:
        return where == self.fault.where and self.saves >= self.fault.at and not self.happened

    def strike(self, moment: str) -> None:
        if self.happened:
            return
        self.happened = True
        what = self.fault.what
        if what != "fill" and self.fault.note:
            Path(self.fault.note).write_text(f"{time.time()} {moment}")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "kill all":
            for process in family():
                os.kill(process, signal.SIGKILL)
        elif what == "terminate":
            os.kill(family()[0], signal.SIGTERM)
        elif what == "fill":
            fill(Path(self.fault.note), int(self.fault.after))
        elif what == "hang in Python":
            threading.Event().wait()
        elif what == "hang in C":
            ctypes.PyDLL(None).sleep(100_000)  # which holds the interpreter's lock
        elif what == "hang in a collective":
            dist.recv(torch.zeros(1), src=1 - self.fault.rank)  # of what nobody sends


def family() -> list[int]:
    """The launcher, where there is one, and all ranks; this process last."""
    if "RANK" not in os.environ:
        return [os.getpid()]
    launcher = os.getppid()
    tasks = Path(f"/proc/{launcher}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [launcher, *(child for child in children if child != os.getpid()), os.getpid()]


def fill(folder: Path, leave: int) -> None:
    """Leave so many bytes of the disk free."""
    state = os.statvfs(folder)
    with (folder / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - leave)


def before(owner: Any, name: str, hook: Callable[[], None]) -> None:
    """Call `hook` before every call of `owner.name`."""
    original = getattr(owner, name)

    def hooked(*arguments: Any, **named: Any) -> Any:
        hook()
        return original(*arguments, **named)

    setattr(owner, name, hooked)


def after(owner: Any, name: str, hook: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def hooked(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        hook()
        return result

    setattr(owner, name, hooked)


def hang_in(injector: Injector) -> None:
    """Every moment that a fault can name."""
    reach = injector.reach
    before(loop, "set_lr", partial(reach, "step"))
    before(loop, "_finish_gradients", partial(reach, "update"))  # gradients are there, weights as before
    before(window.Window, "next", partial(reach, "batch"))
    before(EvalCounts, "add", partial(reach, "evaluation"))
    after(monitor.Monitor, "eval", partial(reach, "evaluated"))  # recorded, nothing saved
    sys.addaudithook(injector.audit)

    def begin_save() -> None:
        injector.saves += 1
        if injector.saves <= injector.fault.at:  # what this save has too few of, the next ones have
            injector.amount = 0.0
        reach("saving")

    before(saves.Saves, "save", begin_save)
    save = torch.save

    def counted(content: Any, file: Any, *arguments: Any, **named: Any) -> None:
        save(content, _Counted(file, injector), *arguments, **named)

    setattr(torch, "save", counted)  # noqa: B010 (of a module, typed)


class _Counted:
    def __init__(self, file: BinaryIO, injector: Injector) -> None:
        self._file = file
        self.write = partial(injector.write, file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def poison(fault: Fault) -> None:
    """Images that are not a number, in `after` steps from step `at` on."""
    step = 0

    def count() -> None:
        nonlocal step
        step += 1

    before(loop, "set_lr", count)
    make = vars(run)["classification"]

    def poisoned(*arguments: Any) -> Any:
        task = make(*arguments)

        def fails(batch: Any, draws: Any) -> Any:
            images, criterion = task(batch, draws)
            bad = fault.at <= step < fault.at + fault.after
            return (images * float("nan") if bad else images), criterion

        return fails

    vars(run)["classification"] = poisoned


def live(fault: Fault) -> NoReturn:
    """The run, to its end or to the fault's. A kill that found no moment happens when all is done."""
    run_dir = next(word.partition("=")[2] for word in sys.argv if word.startswith("run_dir="))
    injector = Injector(fault, run_dir)
    if fault.what == "nan":
        poison(fault)
    elif fault.rank == int(os.environ.get("RANK", "0")):
        hang_in(injector)
    run_command("train", TrainConfig, main)
    if fault.what.startswith("kill") and fault.rank == int(os.environ.get("RANK", "0")):
        injector.strike("the end")
    sys.exit()


if __name__ == "__main__":
    live(Fault(**json.loads(sys.argv.pop(1))))
