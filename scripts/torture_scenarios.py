"""What befalls a run in `scripts.torture`, and what must be true afterwards."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from scripts.torture_damage import DAMAGES, damage
from scripts.torture_faults import Fault
from scripts.torture_runs import SAVES, STEPS, Life, Runs, differences, tensors
from scripts.torture_table import Case
from train.checkpoint import NAME, load_checkpoint
from train.group import MARGIN_S
from train.saves import checkpoints
from train.sharded import sharded_folders
from train.watchdog import BACKSTOP_S

KINDS = ("killed in a step", "killed in a save", "killed between epochs")
TIMEOUT_S = 10
END_S = TIMEOUT_S + BACKSTOP_S + MARGIN_S
"""A hanging run must be over by then: the watchdogs, and the 30 s after which torchrun kills."""


@dataclass
class Torture:
    """One run in one scenario."""

    runs: Runs
    case: Case
    run_dir: Path
    draw: random.Random

    @property
    def single(self) -> bool:
        return self.case.strategy == "single"

    def live(self, *overrides: str, fault: Fault | None = None, resume: bool = True) -> Life:
        more = [*overrides, *(["resume=true"] if resume else [])]
        life = self.runs.live(self.case.strategy, self.run_dir, *more, fault=fault)
        self.case.lives += 1
        self.case.expect(not life.left, f"processes {life.left} outlived their launcher")
        return life

    def befall(self, fault: Fault, *overrides: str, resume: bool = False) -> Life:
        """A life that the fault ends, which must not take longer than END_S from then on."""
        note = self.run_dir.with_suffix(f".fault{self.case.lives}")
        life = self.live(*overrides, fault=replace(fault, note=str(note)), resume=resume)
        self.case.expect(note.exists(), f"the fault did not happen: {fault}")
        if note.exists():
            when, _, moment = note.read_text().partition(" ")
            took = time.time() - float(when)
            self.case.moments.append(f"{fault} ({moment})")
            self.case.expect(took < END_S + 5, f"ended only {took:.0f} s after the fault")
        return life

    def ends_as_if_nothing_had_happened(self, *overrides: str) -> None:
        life = self.live(*overrides)
        self.case.expect(life.code == 0, f"going on ended with {life.code}: {life.output[-2000:]}")
        if life.code == 0:
            self.case.problems += differences(self.runs.reference(self.case.strategy), self.run_dir)

    def log(self, rank: int = 0) -> str:
        return (self.run_dir / "logs" / f"rank{rank}.log").read_text()


def kill(torture: Torture, kind: str, times: int) -> None:
    """SIGKILL, of a rank or of all and the launcher; the life that goes on may be killed again."""
    for life in range(times):
        sizes = sizes_of_saves(torture.runs.reference(torture.case.strategy))
        fault = draw_kill(torture.draw, kind, torture.case.strategy, sizes)
        ended = torture.befall(fault, resume=life > 0)
        torture.case.expect(ended.code != 0, "a killed run ended with 0")
    torture.ends_as_if_nothing_had_happened()


def draw_kill(draw: random.Random, kind: str, strategy: str, sizes: dict[int, int]) -> Fault:
    """`sizes`: bytes that a rank writes in a save."""
    rank = 0 if strategy == "single" else draw.randrange(2)
    what = "kill" if strategy == "single" else draw.choice(["kill", "kill all"])
    if kind == "killed in a step":
        where = draw.choice(["step", "step", "update"])
        return Fault(what, where, draw.randint(1, STEPS - 1), round(draw.uniform(0.001, 1.0), 3), rank)
    if kind == "killed between epochs":
        where, at = draw.choice([("evaluation", draw.randint(1, 4)), ("evaluated", 1), ("saving", 2)])
        return Fault(what, where, at, rank=rank)
    at = draw.randint(1, SAVES)
    if rank not in sizes:  # rank 0 writes for all
        return Fault(what, "saving", at, rank=rank)
    where = draw.choice(["write", "write", "file"])
    # Rank 0 makes the folder, writes the facts and ends the save; another rank opens its file.
    after = draw.randrange(sizes[rank]) if where == "write" else draw.randint(1, 5 if rank == 0 else 1)
    return Fault(what, where, at, after, rank)


def sizes_of_saves(run_dir: Path) -> dict[int, int]:
    sharded = sharded_folders(run_dir)
    if not sharded:
        return {0: (run_dir / NAME).stat().st_size}
    return {rank: (sharded[0] / f"__{rank}_0.distcp").stat().st_size for rank in (0, 1)}


def tear(torture: Torture, how: str) -> None:
    """The latest checkpoint is damaged: the run says so and goes on from the one before."""
    shutil.copytree(torture.runs.reference(torture.case.strategy), torture.run_dir)
    torture.case.moments.append(damage(torture.run_dir, how, torture.draw))
    before = torture.log()
    torture.ends_as_if_nothing_had_happened()
    said = torture.log().removeprefix(before)
    torture.case.expect("falling back to the one before" in said, f"nothing was said: {said}")


def fill_the_disk(torture: Torture) -> None:
    """A save finds no room: one clear error; the checkpoint before stands, and with room the run goes on."""
    with small_disk(torture.run_dir.with_suffix(".disk")) as folder:
        if folder is None:
            torture.case.skipped = "a small disk takes a tmpfs, which only root can mount"
            return
        torture.run_dir = folder / "run"
        rank, at = 0, torture.draw.randint(2, SAVES)
        fault = Fault("fill", "saving", at, torture.draw.randrange(1 << 20), rank, str(folder))
        torture.case.moments.append(f"save {at}, {fault.after:,.0f} bytes free")
        life = torture.live(fault=fault, resume=False)
        # The records of the next step may find the disk full before an asynchronous save tells of it.
        expect_mistake(torture, life, "could not be written|No space left")
        (folder / "filler").unlink()
        torture.case.expect(bool(checkpoints(torture.run_dir)), "no checkpoint is left")
        torture.ends_as_if_nothing_had_happened()


@contextmanager
def small_disk(folder: Path, size: str = "250m") -> Iterator[Path | None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def hang(torture: Torture, how: str) -> None:
    """A rank stops moving: every rank ends in bounded time and leaves its stacks."""
    rank = 0 if torture.single else torture.draw.randrange(2)
    fault = Fault(how, "batch", torture.draw.randint(2, STEPS), rank=rank)
    life = torture.befall(fault, f"strategy.timeout_s={TIMEOUT_S}")
    torture.case.expect(life.code not in (0, 124), f"a hanging run ended with {life.code}")
    for rank in (0,) if torture.single else (0, 1):
        stacks = "train_epoch" in torture.log(rank)
        torture.case.expect(stacks, f"rank {rank} left no stacks: {torture.log(rank)[-1500:]}")
    torture.ends_as_if_nothing_had_happened()


def poison(torture: Torture) -> None:
    """A loss that is not a number ends the run before it gets into a checkpoint, and names its images."""
    # Saved more often than the loss is looked at.
    step = torture.draw.randint(1, STEPS)
    torture.case.moments.append(f"step {step}")
    life = torture.live("log_every=3", fault=Fault("nan", "step", step, 1), resume=False)
    expect_mistake(torture, life, f"the loss is nan at step {step}")
    images = json.loads((torture.run_dir / "nan" / f"step-{step:08d}.json").read_text())["images"]
    torture.case.expect(len(images) == 4 and all(Path(path).is_file() for path in images), f"{images}")
    life = torture.live("log_every=3")
    torture.case.expect(life.code == 0, f"going on ended with {life.code}: {life.output[-2000:]}")
    # Other lines in metrics.jsonl than the reference, so only the weights count.
    whole = tensors(load_checkpoint(torture.runs.reference(torture.case.strategy) / NAME))
    ours = tensors(load_checkpoint(torture.run_dir / NAME))
    unequal = [name for name in whole if not torch.equal(whole[name], ours[name])]
    torture.case.expect(not unequal, f"{len(unequal)} tensors differ")


def skip_poison(torture: Torture, steps: int) -> None:
    """on_nan=skip leaves steps out, and says when they are too many."""
    limit = 2
    at = torture.draw.randint(1, STEPS - steps + 1)
    torture.case.moments.append(f"{steps} step(s) from {at}")
    overrides = ("on_nan=skip", f"max_nan_steps={limit}")
    life = torture.live(*overrides, fault=Fault("nan", "step", at, steps), resume=False)
    if steps > limit:
        expect_mistake(torture, life, f"{steps} steps without a finite loss")
        return
    torture.case.expect(life.code == 0, f"ended with {life.code}: {life.output[-2000:]}")
    saved = load_checkpoint(torture.run_dir / NAME)
    torture.case.expect(saved.progress.nan_steps == steps, f"{saved.progress.nan_steps} steps were left out")
    finite = all(bool(value.isfinite().all()) for value in tensors(saved).values())
    torture.case.expect(finite, "the weights are not finite")


def terminate(torture: Torture) -> None:
    """SIGTERM, to the launcher where there is one: the run saves where it is and says so."""
    where, most = torture.draw.choice([("step", STEPS), ("evaluation", 3), ("saving", SAVES - 1)])
    after = round(torture.draw.uniform(0.001, 0.5), 3) if where == "step" else 0
    life = torture.befall(Fault("terminate", where, torture.draw.randint(1, most), after))
    # torchrun tells the signal by an exit code of its own.
    torture.case.expect(
        life.code == 0 or not torture.single, f"ended with {life.code}: {life.output[-2000:]}"
    )
    said = f"saved at step {latest_step(torture.run_dir)};" in torture.log()
    done = "epoch 2 of 2  top-1" in torture.log()
    torture.case.expect(
        said or done, f"the newest checkpoint is not the one asked for: {torture.log()[-2000:]}"
    )
    torture.ends_as_if_nothing_had_happened()


def latest_step(run_dir: Path) -> int:
    (newest, *_) = checkpoints(run_dir)
    return load_checkpoint(newest).progress.step if newest.is_file() else int(newest.name.split("-")[1])


def expect_mistake(torture: Torture, life: Life, words: str) -> None:
    """One clear error with the words of a pattern, or one a rank; exit code 2, of which torchrun makes 1."""
    code = 2 if torture.single else 1
    torture.case.expect(life.code == code, f"ended with {life.code} and not {code}: {life.output[-2000:]}")
    told = re.findall(rf"^error: .*(?:{words})", life.output, re.MULTILINE)
    most = 1 if torture.single else 2
    torture.case.expect(1 <= len(told) <= most, f"told {len(told)} times: {life.output[-2000:]}")
    ours = life.output.split("torch.distributed.elastic.multiprocessing.errors.ChildFailedError")[0]
    traces = ours.count("Traceback") - (0 if torture.single else 1)  # torchrun's own
    torture.case.expect(traces <= 0, f"a traceback: {life.output[-3000:]}")


Scenario = tuple[str, str, Callable[[Torture], None]]


def scenarios(kills: int, strategies: Sequence[str]) -> Iterator[Scenario]:
    """Name, strategy and what to do, in order."""
    for kind, strategy, times in share_kills(kills, strategies):
        yield kind, strategy, partial(kill, kind=kind, times=times)
    for strategy in strategies:
        for how in DAMAGES:
            yield f"checkpoint {how}", strategy, partial(tear, how=how)
        yield "disk full", strategy, fill_the_disk
        for how in ("Python", "C", *(["a collective"] if strategy != "single" else [])):
            yield f"hang in {how}", strategy, partial(hang, how=f"hang in {how}")
        yield "NaN stops", strategy, poison
        for steps in (2, 3):
            yield "NaN skipped", strategy, partial(skip_poison, steps=steps)
        yield "SIGTERM", strategy, terminate


def share_kills(kills: int, strategies: Sequence[str]) -> list[tuple[str, str, int]]:
    """Kind, strategy and how often a run is killed: once, or a second time while it goes on."""
    places = [(kind, strategy) for strategy in strategies for kind in KINDS]
    shares = [kills // len(places) + (place < kills % len(places)) for place in range(len(places))]
    return [
        (*place, min(2, share - done))
        for place, share in zip(places, shares, strict=True)
        for done in range(0, share, 2)
    ]
