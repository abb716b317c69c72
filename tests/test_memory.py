"""What a step frees is there for the next one, without the system's help."""

from __future__ import annotations

import sys

import pytest

from tests.processes import python

STEPS = """
import resource, sys, torch
from train.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory(torch.device("cpu"))
def step():
    tensors = [torch.ones(1 << 20) for _ in range(16)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_that_a_step_frees_is_not_fetched_again() -> None:
    faults = {}
    for how in ("kept", "left"):
        # Without a threshold given, glibc finds one by what was freed before: now and then it keeps all.
        done = python("-c", STEPS, how, env={"MALLOC_MMAP_THRESHOLD_": "131072"})
        assert done.returncode == 0, done.stderr
        faults[how] = int(done.stdout)
    # 16 tensors of 4 MiB in each of 5 steps: 1,024 faults each, or 2 where the kernel gives huge pages.
    assert 4 * faults["kept"] < faults["left"]
