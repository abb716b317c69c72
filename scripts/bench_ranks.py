"""`python -m scripts.bench_ranks`: what several ranks make of the same machine, against one.

In turns: rank 0 alone; every rank by itself, which shows what the cores or GPUs share besides the network;
all together under DDP. Each rank on a CPU has one core and one thread. On more GPUs: torchrun --standalone
--nproc-per-node=8 -m scripts.bench_ranks. Overrides are those of `python -m train`; batch_size is a rank's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch

from data.loader import Batch
from scripts.bench_lines import machine_line, rate_line, ratio_line
from scripts.bench_loop import InMemory, bench_config, drawn_spec, our_loop, our_training, random_batches
from train.ddp import DDP
from train.loop import Job, Training
from train.memory import keep_memory
from train.precision import choose_precision
from train.ranks import Ranks, choose_device
from train.strategy import Single


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="in each turn (default: 20)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    ranks = Ranks.from_environ()
    if not ranks.launched:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        command = [sys.executable, "-m", *launcher, "-m", "scripts.bench_ranks", *sys.argv[1:]]
        return subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode
    config = bench_config(options.overrides, options.steps)
    device = choose_device(config.device, ranks)
    keep_memory(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[ranks.local_rank % len(cores)]})
    precision = choose_precision(config.precision, device)
    group = DDP(ranks, device, precision, timeout_s=600)
    single = Single(Ranks(ranks.rank, 1, 0, 1, launched=False), device, precision)
    batches = random_batches(config, options.steps, device)
    spec = drawn_spec(config)
    with our_training(config, spec, single) as one, our_training(config, spec, group) as all_:
        rates = measure(group, one, all_, batches, options.rounds)
    if ranks.is_first:
        print(machine_line(device))
        print(
            f"{config.model.name} at {config.data.input.size} px, {config.batch_size} images a rank, "
            f"{precision}, {ranks.world} ranks, {options.rounds} rounds"
        )
        for name, found in rates.items():
            print(rate_line(name, found))
        goal = f"at least {0.9 * ranks.world:g}"
        print(ratio_line("together over alone", rates["together"], rates["alone"], goal))
        print(ratio_line("apart over alone", rates["apart"], rates["alone"], "none, it is the machine's"))
        print(ratio_line("together over apart", rates["together"], rates["apart"], "at least 0.9"))
    group.close()
    return 0


def measure(
    group: DDP, one: tuple[Training, Job], all_: tuple[Training, Job], batches: list[Batch], rounds: int
) -> dict[str, list[float]]:
    """Images a second over all ranks, by turn; the slowest rank counts."""
    images = len(batches) * len(batches[0].labels)
    loader = InMemory(batches, len(batches))

    def by_itself() -> float:
        return our_loop(one[0], loader, one[1])

    def slowest(seconds: float) -> float:
        parts = group.gather(torch.tensor([seconds], device=group.device))
        return max(float(part) for part in parts) if parts is not None else seconds

    by_itself()
    our_loop(all_[0], loader, all_[1])
    rates: dict[str, list[float]] = {"alone": [], "apart": [], "together": []}
    for _ in range(rounds):
        rates["alone"].append(images / group.on_first(by_itself))
        group.any(False)
        rates["apart"].append(group.replicas * images / slowest(by_itself()))
        group.any(False)
        rates["together"].append(group.replicas * images / slowest(our_loop(all_[0], loader, all_[1])))
        group.any(False)
    return rates


if __name__ == "__main__":
    sys.exit(main())
