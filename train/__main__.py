"""`python -m train [key=value ...]`, alone or under torchrun."""

from __future__ import annotations

from configs.load import run_command
from configs.schema import TrainConfig


def main(config: TrainConfig) -> None:
    # torch takes seconds to import: a mistake in the config is told before that.
    from train.run import run

    run(config)


if __name__ == "__main__":
    run_command("train", TrainConfig, main)
