"""For all tests: one thread a process, so that tests beside others do not spin against each other."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
