"""The product of comma lists, several runs at a time: a GPU or some for each, or a share of the cores.

`python -m scripts.sweep --slots 2 optim.lr=0.05,0.1 model=resnet18,resnet34 epochs=5`
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from configs.load import sweep_jobs
from configs.schema import TrainConfig
from deploy.errors import LabError
from deploy.machine import usable_cores
from train.launch import Child, Place, require_no_launcher, run_children
from train.monitor import progress_bar
from train.result import read_result
from train.sweep import Job, job_command, open_sweep_dir, report, say, with_advice


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 where a run has no result, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.sweep",
        description="Train the product of comma lists, several runs at a time.",
        epilog="example: python -m scripts.sweep --slots 2 optim.lr=0.05,0.1 epochs=5",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE[,VALUE...]", help="as python -m train takes them"
    )
    parser.add_argument(
        "--slots", type=int, help="runs at a time (default: as many as the GPUs allow, else 1)"
    )
    parser.add_argument("--gpus-per-job", type=int, help="GPUs of each run (default: its `processes`)")
    options = parser.parse_intermixed_args(argv)
    try:
        require_no_launcher()
        jobs = sweep_jobs("train", TrainConfig, options.overrides)
        wanted = options.gpus_per_job or max(job.config.processes or 1 for job in jobs)
        on_cpu = all(job.config.device == "cpu" for job in jobs)
        gpus = (
            [] if on_cpu else visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
        )
        if options.gpus_per_job and not gpus:
            raise LabError("--gpus-per-job, but there is no GPU for these runs: leave it out")
        places = places_for(gpus, wanted, options.slots)
        folder = open_sweep_dir(jobs)
        with_advice(folder, lambda: run_parallel(folder, jobs, places))
        report(folder, jobs)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_parallel(folder: Path, jobs: Sequence[Job], places: Sequence[Place]) -> None:
    """Run those that are not done yet; each prints into job.log in its folder."""
    left = [job for job in jobs if read_result(folder / job.name, job.config) is None]
    say(f"{folder}: {len(jobs)} runs, {len(jobs) - len(left)} done already, {len(places)} at a time")
    children = [Child(job_command(folder, job), folder / job.name / "job.log") for job in left]
    with progress_bar("runs", enabled=True) as show:
        done = len(jobs) - len(left)
        show(done, len(jobs))

        def ended(index: int, code: int) -> None:
            nonlocal done
            done += 1
            show(done, len(jobs), left[index].name)
            outcome = "done" if code == 0 else f"failed with exit code {code}, see {children[index].log}"
            say(f"{left[index].name}: {outcome}")

        run_children(children, places, ended)


def visible_gpus(variable: str | None, count: int) -> list[str]:
    """The GPUs by the names that CUDA_VISIBLE_DEVICES gives them, else by number."""
    names = [name.strip() for name in variable.split(",")] if variable else []
    return names[:count] if names else [str(number) for number in range(count)]


def places_for(gpus: Sequence[str], gpus_per_job: int, slots: int | None) -> list[Place]:
    """One for each run at a time, with its GPUs, or without GPUs its cores. Raises LabError for too many."""
    if slots is not None and slots < 1:
        raise LabError(f"--slots={slots}: give 1 or more")
    most = len(gpus) // gpus_per_job if gpus else usable_cores()
    if most == 0 or (slots or 1) > most:
        have = f"{len(gpus)} GPU(s), {gpus_per_job} for each run" if gpus else f"{most} core(s)"
        raise LabError(
            f"{slots or 1} run(s) at a time, but there are {have}: use fewer --slots or --gpus-per-job"
        )
    if gpus:
        taken = range(0, (slots or most) * gpus_per_job, gpus_per_job)
        return [Place(gpus=",".join(gpus[first : first + gpus_per_job])) for first in taken]
    if not hasattr(os, "sched_getaffinity"):
        return [Place()] * (slots or 1)
    cores = sorted(os.sched_getaffinity(0))
    count = slots or 1
    return [Place(cores=frozenset(cores[number::count])) for number in range(count)]


if __name__ == "__main__":
    sys.exit(main())
