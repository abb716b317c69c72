"""`python -m train [key=value ...]`, alone or under torchrun; with `-m` the product of comma lists."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from configs.load import Launch, SweepJob, run_command
from configs.schema import TrainConfig
from train.launch import (
    Child,
    is_cross_validation,
    launched,
    require_no_launcher,
    run_children,
    train_command,
)


def main(config: TrainConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: a mistake in the config is told before that.
    if is_cross_validation(config):
        require_no_launcher()
        from train.cv import cross_validate

        cross_validate(config, overrides)
    elif (config.processes or 1) > 1 and not launched():
        command = train_command(config, overrides)
        print(shlex.join(command), file=sys.stderr, flush=True)
        (code,) = run_children([Child(command)])
        sys.exit(code if code >= 0 else 128 - code)
    else:
        from train.run import run

        run(config)


def sweep(jobs: list[SweepJob[TrainConfig]], launch: Launch[TrainConfig]) -> None:
    require_no_launcher()
    from train.sweep import sweep

    sweep(jobs, launch)


if __name__ == "__main__":
    run_command("train", TrainConfig, main, sweep)
