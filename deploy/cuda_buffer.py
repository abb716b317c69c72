"""Memory that an engine's input or output lies in, on the host and on the device."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from deploy.cuda import Cuda


class Buffer:
    """Host memory that is never paged out, and its device twin: the same memory where CPU and GPU share it.

    host: uint8 [num_bytes]. device: the address for the GPU.
    """

    def __init__(self, cuda: Cuda, num_bytes: int, *, zero_copy: bool) -> None:
        self._cuda, self._zero_copy = cuda, zero_copy
        size = max(1, num_bytes)
        self._host = cuda.host_alloc(size, mapped=zero_copy)
        try:
            self.device = cuda.mapped_address(self._host) if zero_copy else cuda.malloc(size)
        except BaseException:
            cuda.free_host(self._host)
            raise
        self.host: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._host))

    def upload(self, num_bytes: int, stream: int) -> None:
        """Queue the copy of the first bytes to the device, where it is a copy."""
        if not self._zero_copy:
            self._cuda.upload(self.device, self._host, num_bytes, stream)

    def download(self, num_bytes: int, stream: int) -> None:
        if not self._zero_copy:
            self._cuda.download(self._host, self.device, num_bytes, stream)

    def close(self) -> None:
        """Free both. Nothing may read `host` afterwards."""
        if not self._zero_copy:
            self._cuda.free(self.device)
        self._cuda.free_host(self._host)
