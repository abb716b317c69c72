"""`make demo`: the whole road on real digits, from nothing to a report, with the commands it runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

RUN = Path("runs/demo")


def main() -> int:
    if (RUN / "report.html").exists():
        shutil.rmtree(RUN)  # a finished demo starts anew, an interrupted one goes on
    start = time.monotonic()
    # A power of two, among which the batch of 64 divides.
    num_processes = 1 << max(0, torch.cuda.device_count().bit_length() - 1)
    train = [
        *("torchrun", "--standalone", f"--nproc-per-node={num_processes}", "-m", "train"),
        *("experiment=demo", f"run_dir={RUN}", "resume=true"),
    ]
    checkpoint = f"checkpoint={RUN}/checkpoint.pt"
    chain = RUN / "optimize"
    smaller = ["python", "-m", "optimize", checkpoint, "recipe=demo", f"out={chain}"]
    quantize = [
        *("python", "-m", "scripts.quantize_and_benchmark", checkpoint),
        f"compressed=[{chain}/2-finetune/checkpoint.pt,{chain}/3-qat/checkpoint.pt]",
    ]
    commands = (train, smaller, quantize)
    for step, command in enumerate(commands, 1):
        print(f"\n[{step}/{len(commands)}] {' '.join(command)}", flush=True)
        launcher = ["-m", "torch.distributed.run"] if command[0] == "torchrun" else []
        status = subprocess.run([sys.executable, *launcher, *command[1:]]).returncode
        if status:
            print(
                f"error: that command ended with code {status}; `make demo` goes on from here",
                file=sys.stderr,
            )
            return status
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Open {RUN}/report.html in a browser.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
