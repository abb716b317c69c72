"""One batch size of an engine: its execution context, and its CUDA graph once it has run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.cuda import Cuda, CudaError
from deploy.cuda_buffer import Buffer
from deploy.errors import LabError
from deploy.runner import Arrays, Feed, TensorSpec
from deploy.trt_api import TensorRT
from deploy.trt_types import Engine, sides


class Query:
    """Copies in, inference, copies out, as one launch of a CUDA graph.

    A graph holds the shapes and addresses that it was captured with, so each batch size has a context and a
    graph of its own; the buffers are everyone's.
    """

    def __init__(
        self,
        api: TensorRT,
        cuda: Cuda,
        engine: Engine,
        specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
        buffers: Mapping[str, Buffer],
        batch: int,
        stream: int,
        say: Callable[[str], None],
    ) -> None:
        self._api, self._cuda, self._stream, self._batch = api, cuda, stream, batch
        self._context = api.context(engine)
        self._graph: int | None = None
        inputs, outputs = specs
        for spec in inputs:
            shape = tuple(batch if side is None else side for side in spec.shape)
            if not self._context.set_input_shape(spec.name, shape):
                raise LabError(
                    f"input {spec.name!r}: TensorRT refuses the shape {shape}: {self._api.log.take()}"
                )
        for name, buffer in buffers.items():
            self._context.set_tensor_address(name, buffer.device)
        self._inputs = {spec.name: self._place(spec, buffers) for spec in inputs}
        self._outputs = {spec.name: self._place(spec, buffers) for spec in outputs}
        self._capture(say)

    def run(self, feed: Feed) -> Arrays:
        """{name: array} to {name: array}, checked by the caller. Raises CudaError for what a kernel does."""
        for name, (_, view) in self._inputs.items():
            if feed[name] is not view:
                np.copyto(view, feed[name])
        if self._graph is None:
            self._enqueue()
        else:
            self._cuda.launch(self._graph, self._stream)
        self._cuda.synchronize(self._stream)
        return {name: view.copy() for name, (_, view) in self._outputs.items()}

    @property
    def staging(self) -> Arrays:
        """The inputs' own memory, by name."""
        return {name: view for name, (_, view) in self._inputs.items()}

    def close(self) -> None:
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        self._graph = self._context = None  # type: ignore[assignment]  # TensorRT frees what nobody holds

    def _place(self, spec: TensorSpec, buffers: Mapping[str, Buffer]) -> tuple[Buffer, NDArray[Any]]:
        """A tensor's buffer, and what this batch takes of its host side, as an array of its shape."""
        shape = sides(self._context.get_tensor_shape(spec.name))
        if any(side < 0 for side in shape):
            raise LabError(
                f"{spec.name!r} has the shape {shape} at batch {self._batch}: it depends on the data, for "
                "which no buffer can be had beforehand; export the model without such outputs"
            )
        dtype = np.dtype(spec.dtype)
        view = buffers[spec.name].host[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        return buffers[spec.name], view

    def _enqueue(self) -> None:
        for buffer, view in self._inputs.values():
            buffer.upload(view.nbytes, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise CudaError("execute_async_v3", "TensorRT", self._api.log.take() or "it does not say why")
        for buffer, view in self._outputs.values():
            buffer.download(view.nbytes, self._stream)

    def _capture(self, say: Callable[[str], None]) -> None:
        """After one plain run, which lets TensorRT do what it does only once and no graph may hold."""
        self._enqueue()
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        try:
            self._enqueue()
            self._graph = self._cuda.end_capture(self._stream)
        except (CudaError, LabError) as error:
            self._cuda.drop_capture(self._stream)
            say(f"batch {self._batch} runs without a CUDA graph, which takes longer to launch: {error}")
