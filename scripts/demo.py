"""`make demo`: the whole road on real digits, from nothing to a report, with the commands it runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from scripts.device_python import ABSENT, LIBRARIES, device_environment, device_python, found_by

RUN = Path("runs/demo")
FILE = RUN / "demo.pyz"


def main() -> int:
    if FILE.exists():
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
    one_file = ["python", "-m", "optimize.bundle", f"{RUN}/bundle", "--pyz", str(FILE)]
    commands = (train, smaller, quantize, one_file)
    for step, command in enumerate(commands, 1):
        print(f"\n[{step}/{len(commands) + 1}] {' '.join(command)}", flush=True)
        launcher = ["-m", "torch.distributed.run"] if command[0] == "torchrun" else []
        status = subprocess.run([sys.executable, *launcher, *command[1:]]).returncode
        if status:
            print(
                f"error: that command ended with code {status}; `make demo` goes on from here",
                file=sys.stderr,
            )
            return status
    print(f"\n[{len(commands) + 1}/{len(commands) + 1}] python3 {FILE} verify", flush=True)
    status = verify_as_a_device()
    if status:
        print(f"error: {FILE} does not verify, code {status}; see above", file=sys.stderr)
        return status
    size_mib = FILE.stat().st_size / 2**20
    print(f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Open {RUN}/report.html in a browser.")
    print(f"{FILE} has {size_mib:.0f} MiB. To show it here: python3 {FILE} demo. On a Jetson:")
    print(f"  scp {FILE} jetson:")
    print(f"  ssh -t -L 8000:127.0.0.1:8000 jetson python3 {FILE.name} demo  # on http://localhost:8000")
    return 0


def verify_as_a_device() -> int:
    """`verify` of the one file by a Python that has what a device has; the exit code, 1 where it has more."""
    with tempfile.TemporaryDirectory() as folder:
        python = device_python(Path(folder, "python"))
        if found := found_by(python, ABSENT):
            print(
                f"error: the Python of this step finds {', '.join(found)}, which no device has",
                file=sys.stderr,
            )
            return 1
        print(
            f"by a Python that has {', '.join(LIBRARIES)} and cannot import {', '.join(ABSENT)}:", flush=True
        )
        environment = device_environment(Path(folder, "cache"))
        return subprocess.run([python, FILE.absolute(), "verify"], cwd=folder, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
