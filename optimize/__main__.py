"""`python -m optimize checkpoint=RUN/checkpoint.pt stages=[prune,finetune]`: smaller, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from configs.compress import OptimizeConfig
from configs.load import run_command


def main(config: OptimizeConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: a mistake in the config is told before that.
    from optimize.chain import format_chain, run_chain

    records = run_chain(config, say)
    out = Path(config.out) if config.out else Path(config.checkpoint).parent / "optimize"
    last = out / f"{len(records) - 1}-{records[-1].stage}" / "checkpoint.pt"
    print(f"\n{format_chain(records, config.gate.max_drop)}\n\ncheckpoint: {last}")


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command("optimize", OptimizeConfig, main)
