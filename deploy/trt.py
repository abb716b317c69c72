"""The TensorRT runner: pinned memory, a stream a query in flight, a CUDA graph a batch size, no copies on
shared memory."""

from __future__ import annotations

import sys
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from deploy.cuda import find_cuda
from deploy.engine import BuiltEngine, Target, check_engine, find_target, ready_engine
from deploy.errors import LabError
from deploy.manifest import Bundle
from deploy.runner import Arrays, Feed, TensorSpec, check_feed, check_model
from deploy.trt_api import TensorRT, find_tensorrt
from deploy.trt_lane import Lane
from deploy.trt_types import Engine, sides


class TensorRTRunner:
    """An engine file, opened. See :class:`deploy.runner.Runner`.

    precision: what the engine's layers compute in, as the engine itself says; None where it was not asked.
    in_flight: threads that may call `infer` at once; each has a lane of its own.
    unkept: the engine, where there is no file of it at `path`.
    Raises LabError for an engine of another device or version, one that does not fit the bundle if one is
    given, and where memory or a type is wanting.
    """

    backend = "tensorrt"
    threads = 1

    def __init__(
        self,
        path: Path,
        target: Target,
        bundle: Bundle | None = None,
        *,
        in_flight: int = 1,
        unkept: BuiltEngine | None = None,
    ) -> None:
        record = check_engine(path, target) if unkept is None else unkept.record
        self._api, self._cuda = target.api, target.cuda
        self.backend_version = f"RTX {target.api.version}" if target.api.rtx else target.api.version
        self.precision = record.precision.leading if record.precision else None
        self.device = target.device.name if target.device else None
        self._record, self._path = record, path
        self._engine: Engine | None = self._api.open_engine(
            path.read_bytes() if unkept is None else unkept.unkept, str(path)
        )
        self.inputs, self.outputs = _tensors(self._api, self._engine)
        if bundle is not None:
            check_model(str(path), self.inputs, self.outputs, bundle)
        self._lanes: list[Lane] = []
        self._free: SimpleQueue[Lane] = SimpleQueue()
        zero_copy = target.device is not None and target.device.integrated
        specs = self.inputs, self.outputs
        try:
            for _ in range(in_flight):
                lane = Lane(self._api, self._cuda, self._engine, specs, record.batch[2], zero_copy, _note)
                self._lanes.append(lane)
                self._free.put(lane)
        except BaseException:
            self._close()
            raise

    def infer(self, feed: Feed) -> Arrays:
        check_feed(feed, self.inputs)
        batch = feed[self.inputs[0].name].shape[0]
        self._check(batch)
        lane = self._free.get()
        try:
            return lane.query(batch).run(feed)
        finally:
            self._free.put(lane)

    def staging(self, batch: int) -> Arrays:
        """{name: array} that lie where the GPU reads: fill them and give them to `infer`, which saves a copy.

        Every batch size lies in the same memory, and nothing may touch the arrays once the runner is closed.
        Of a runner with one query in flight.
        """
        self._check(batch)
        return self._lanes[0].query(batch).staging

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _check(self, batch: int) -> None:
        least, common, most = self._record.batch
        if not least <= batch <= most:
            raise LabError(
                f"batch {batch}: {self._path.name} was built for {least} to {most}; build it for more: "
                f"python -m deploy build BUNDLE --variant {self._record.variant} --batch "
                f"{min(least, batch)} {common} {max(most, batch)}"
            )
        if self._engine is None:
            raise RuntimeError("the runner is closed")

    def _close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes, self._engine = [], None


def open_tensorrt(bundle: Bundle, variant: str, in_flight: int = 1) -> TensorRTRunner:
    """The runner of a variant on this machine's GPU; its engine is built if there is none that fits."""
    target = find_target(find_tensorrt(), find_cuda())
    ready = ready_engine(bundle, variant, target, None, _note, must_keep=False)
    if ready.built:
        _note("\n".join([f"{variant}: built in {ready.record.build_s:.1f} s", *ready.record.account()]))
    unkept = None if ready.unkept is None else ready
    return TensorRTRunner(ready.path, target, bundle, in_flight=in_flight, unkept=unkept)


def _note(text: str) -> None:
    """Not on stdout, where results go."""
    print(text, file=sys.stderr)


def _tensors(api: TensorRT, engine: Engine) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """(inputs, outputs) in the engine's order."""
    found: dict[str, list[TensorSpec]] = {"INPUT": [], "OUTPUT": []}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        shape = tuple(None if side < 0 else side for side in sides(engine.get_tensor_shape(name)))
        spec = TensorSpec(name, api.dtype(engine.get_tensor_dtype(name), name), shape)
        found[engine.get_tensor_mode(name).name].append(spec)
    return tuple(found["INPUT"]), tuple(found["OUTPUT"])
