"""A trace of some steps, and what was dear in them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from torch.profiler import ProfilerActivity, profile

from configs.schema import ProfileConfig
from train.monitor import log, log_file
from train.strategy import Strategy

MAX_ROWS = 10


class Profiler:
    """Of rank 0, from step `start` to `start` + `steps` or the end of the run, with the evaluation that falls
    between. The trace goes where TensorBoard's profiler plugin looks for it; Perfetto opens it too."""

    def __init__(self, config: ProfileConfig, run_dir: Path, strategy: Strategy) -> None:
        on = config.steps > 0 and strategy.ranks.is_first
        self._first = config.start if on else -1
        self._last = config.start + config.steps
        self._on_gpu = strategy.device.type == "cuda"
        self._path = (
            run_dir
            / "tensorboard"
            / "plugins"
            / "profile"
            / f"step-{config.start:08d}"
            / "rank0.pt.trace.json"
        )
        self._log = run_dir / "logs" / "rank0.log"
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """Before a step; `step` are done."""
        if step == self._first:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_gpu
            self._profile = profile(activities=activities)
            self._profile.start()

    def end(self, step: int) -> None:
        """After a step; `step` are done."""
        if step == self._last:
            self._finish()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish()

    def _finish(self) -> None:
        done, self._profile = self._profile, None
        if done is None:
            return
        done.stop()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(self._path))
        key = "self_device_time_total" if self._on_gpu else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=key, row_limit=MAX_ROWS, max_name_column_width=40)
        log_file.info("the %d costliest operators:\n%s", MAX_ROWS, table)
        log.info("profile: trace in %s, the costliest operators in %s", self._path, self._log)
