"""Several runs with one purpose, each a process and a folder of its own: what is done stays done, one that
fails does not take the others along, and a table ends it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.load import Launch, SweepJob, override
from configs.schema import TrainConfig
from deploy.errors import LabError
from train.launch import Child, run_children, train_command
from train.result import read_result, write_json
from train.run import open_run_dir

NAME = "sweep.json"
Job = SweepJob[TrainConfig]


def sweep(jobs: list[Job], launch: Launch[TrainConfig]) -> None:
    """Have `launch` run every job below the sweep's folder. Raises SystemExit where one has no result."""
    folder = open_sweep_dir(jobs)
    with_advice(folder, partial(launch, folder, partial(run_job, folder)))
    report(folder, jobs)


def open_sweep_dir(jobs: Sequence[Job]) -> Path:
    """The folder that is to hold the jobs' folders. Raises LabError where it holds some, without resume."""
    config = jobs[0].config
    if len({job.config.run_dir for job in jobs}) > 1:
        raise LabError("run_dir is the folder of the whole sweep: give one; the jobs get folders below it")
    folder = open_run_dir(config)
    begun = [job.name for job in jobs if (folder / job.name).exists()]
    if begun and not config.resume:
        raise LabError(
            f"run_dir={folder} holds {len(begun)} of these runs already, {begun[0]} for one: "
            "go on with resume=true, or give another run_dir"
        )
    return folder


def job_command(folder: Path, job: Job) -> list[str]:
    """That begins the job or goes on with it, in its folder."""
    own = [word for word in job.overrides if word.lstrip("+").split("=")[0] not in ("run_dir", "resume")]
    return train_command(job.config, [*own, override("run_dir", str(folder / job.name)), "resume=true"])


def run_job(folder: Path, job: Job) -> None:
    """Run one that is not done yet, here and now."""
    if read_result(folder / job.name, job.config) is not None:
        say(f"{job.name}: done already")
        return
    command = job_command(folder, job)
    say(f"{job.name}: {shlex.join(command)}")
    (code,) = run_children([Child(command)])
    if code:
        say(f"{job.name}: failed with exit code {code}")


def run_jobs(folder: Path, jobs: Sequence[Job]) -> None:
    for job in jobs:
        run_job(folder, job)


def with_advice(folder: Path, work: Callable[[], object]) -> None:
    """Do the work, and say how to go on where a signal ends it."""
    try:
        work()
    except SystemExit:
        say(f"stopped as asked; the same command with run_dir={folder} resume=true goes on")
        raise


def report(folder: Path, jobs: Sequence[Job]) -> None:
    """Print the table and write sweep.json. Raises SystemExit(1) that names the jobs that have no result."""
    results = collect(folder, jobs)
    rows = [
        {
            "name": job.name,
            "overrides": list(job.overrides),
            "run_dir": str(folder / job.name),
            "metrics": results.get(job.name),
        }
        for job in jobs
    ]
    write_json(folder / NAME, rows)
    print_table(folder.name, {job.name: results.get(job.name) for job in jobs})
    averages = over_seeds(jobs, results)
    if averages:
        print_table(f"{folder.name}: mean and standard deviation over the seeds", averages)
    require_all(folder, jobs, results)


def collect(folder: Path, jobs: Sequence[Job]) -> dict[str, dict[str, float]]:
    """Metrics of the jobs that are done, by name."""
    results = {job.name: read_result(folder / job.name, job.config) for job in jobs}
    return {name: result.metrics for name, result in results.items() if result is not None}


def require_all(folder: Path, jobs: Sequence[Job], results: dict[str, dict[str, float]]) -> None:
    """Raises SystemExit(1) that names the jobs that have no result."""
    failed = [job.name for job in jobs if job.name not in results]
    if failed:
        say(
            f"error: {len(failed)} of {len(jobs)} runs have no result: {', '.join(failed)}. Their folders in "
            f"{folder} have logs; the same command with run_dir={folder} resume=true tries them again"
        )
        raise SystemExit(1)


def over_seeds(jobs: Sequence[Job], results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, str]]:
    """Of runs that differ in nothing but their seed, by what sets them apart from the rest; empty where every
    run stands alone."""
    groups: dict[tuple[str, ...], list[Mapping[str, float]]] = {}
    for job in jobs:
        if job.name in results:
            words = tuple(word for word in job.overrides if not word.startswith("seed="))
            groups.setdefault(words, []).append(results[job.name])
    common = set.intersection(*map(set, groups)) if groups else set()
    return {
        ", ".join(word for word in words if word not in common) or "every seed": {
            name: f"{mean(run[name] for run in runs):.4f} ± {stdev(run[name] for run in runs):.4f}"
            for name in runs[0]
            if all(name in run for run in runs)
        }
        for words, runs in groups.items()
        if len(runs) > 1
    }


def print_table(
    title: str, rows: Mapping[str, Mapping[str, float] | None] | Mapping[str, Mapping[str, str]]
) -> None:
    """To stdout, a row for each run, `failed` where it has no metrics."""
    names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics or {}))
    table = Table("run", title=escape(title))
    for name in names:
        table.add_column(name, justify="right")
    for run, metrics in rows.items():
        found = [metrics.get(name, "") for name in names] if metrics else []
        cells = [value if isinstance(value, str) else f"{value:.4f}" for value in found]
        table.add_row(escape(run), *(cells or ["failed"]))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
