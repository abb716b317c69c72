"""What one query of an engine holds while it runs: a stream, a buffer a tensor, a context a batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from deploy.cuda import Cuda, CudaError
from deploy.cuda_buffer import Buffer
from deploy.runner import TensorSpec
from deploy.trt_api import TensorRT
from deploy.trt_query import Query
from deploy.trt_types import Engine

_MOST_QUERIES = 8  # batch sizes that are kept ready; each holds the memory of an execution context


class Lane:
    """Queries of one lane follow each other; those of several overlap.

    batch: the largest that it takes. zero_copy: CPU and GPU share their memory.
    """

    def __init__(
        self,
        api: TensorRT,
        cuda: Cuda,
        engine: Engine,
        specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
        batch: int,
        zero_copy: bool,
        say: Callable[[str], None],
    ) -> None:
        self._api, self._cuda, self._engine, self._specs, self._say = api, cuda, engine, specs, say
        self._buffers: dict[str, Buffer] = {}
        self.queries: dict[int, Query] = {}
        self._stream = cuda.stream()
        try:
            for spec in (*specs[0], *specs[1]):
                count = math.prod(batch if side is None else side for side in spec.shape)
                size = count * np.dtype(spec.dtype).itemsize
                self._buffers[spec.name] = Buffer(cuda, size, zero_copy=zero_copy)
        except BaseException:
            self.close()
            raise

    def query(self, batch: int) -> Query:
        """That of this batch size, made ready if need be."""
        if batch not in self.queries:
            while len(self.queries) >= _MOST_QUERIES:
                self.queries.pop(next(iter(self.queries))).close()
            self.queries[batch] = Query(
                self._api,
                self._cuda,
                self._engine,
                self._specs,
                self._buffers,
                batch,
                self._stream,
                self._say,
            )
        return self.queries[batch]

    def close(self) -> None:
        held = [*(q.close for q in self.queries.values()), *(b.close for b in self._buffers.values())]
        held.append(lambda: self._cuda.destroy_stream(self._stream))
        for close in held:
            with suppress(CudaError):  # after a kernel's error each call fails with it again, and hides it
                close()
        self.queries, self._buffers = {}, {}
        self._engine = None  # type: ignore[assignment]  # TensorRT frees what nobody holds
