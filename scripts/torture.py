"""`python -m scripts.torture`: the proof that a training run cannot be killed.

Every scenario is a real run (two ranks under torchrun, gloo) that something befalls. It then goes on with
resume=true, and must end with the tensors of the run that nothing befell, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.torture_runs import STRATEGIES, Runs
from scripts.torture_scenarios import Torture, scenarios
from scripts.torture_table import Board, Case, write_markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 1 where anything was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m scripts.torture", description=__doc__)
    parser.add_argument("--seed", type=int, help="of the random moments (default: a new one, printed)")
    parser.add_argument("--kills", type=int, default=20, help="random moments of SIGKILL (default: 20)")
    parser.add_argument("--only", default="", help="scenarios whose name has one of these words")
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="default: %(default)s")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table into this page")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else random.randrange(1 << 32)
    strategies = options.strategies.split(",")
    if not set(strategies) <= set(STRATEGIES):
        parser.error(f"--strategies={options.strategies}: choose from {','.join(STRATEGIES)}")
    wanted = [
        s for s in scenarios(options.kills, strategies) if any(w in s[0] for w in options.only.split(","))
    ]
    if not wanted:
        parser.error(f"--only={options.only}: no scenario has such a name")
    command = f"python -m scripts.torture --seed {seed} --kills {options.kills}"
    command += f" --only {shlex.quote(options.only)}" if options.only else ""
    command += f" --strategies {options.strategies}" if strategies != list(STRATEGIES) else ""
    with tempfile.TemporaryDirectory(prefix="torture-") as folder, Board(command) as board:
        runs = Runs(Path(folder))
        for number, (name, strategy, befall) in enumerate(wanted):
            case = Case(name, strategy)
            board.begin(case, len(wanted) - number)
            # Of the scenario alone, so that --only draws the same moments.
            draw = random.Random(f"{seed} {name} {strategy} {sum(n == name for n, *_ in wanted[:number])}")
            torture = Torture(runs, case, Path(folder, f"run{number}"), draw)
            start = time.monotonic()
            try:
                runs.reference(strategy)
                befall(torture)
            except Exception as error:  # one scenario that cannot be judged must not hide the others
                case.problems.append(f"{type(error).__name__}: {error}")
            case.seconds = time.monotonic() - start
            board.end(case)
            shutil.rmtree(torture.run_dir, ignore_errors=True)
    if options.markdown:
        write_markdown(options.markdown, command, board.cases)
    return 1 if any(case.problems for case in board.cases) else 0


if __name__ == "__main__":
    sys.exit(main())
