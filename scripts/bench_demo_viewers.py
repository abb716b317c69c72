"""`python -m scripts.bench_demo_viewers PORT VIEWERS SECONDS`: that many viewers of a demo's live picture.

A process that `scripts.bench_demo` starts; of the standard library alone, so that nothing but the viewing
takes processor time. Prints "ready" once each of them has a picture, and then each one's pictures a second.
"""

from __future__ import annotations

import socket
import sys
import threading
import time


def main() -> int:
    port, count, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    together = threading.Barrier(count + 1)
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(watch(port, seconds, together)), daemon=True)
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    together.wait()
    print("ready", flush=True)
    for thread in threads:
        thread.join()
    print(*found, flush=True)
    return 0


def watch(port: int, seconds: float, together: threading.Barrier) -> float:
    """Pictures a second, counted from the moment that all have one."""
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while stream.readline().strip():  # the headers
            pass
        num_pictures, end = 0, None
        while end is None or time.monotonic() < end:
            message = stream.read(int(stream.readline(), 16))  # one is a chunk of HTTP's
            stream.readline()
            has_picture = message[4:8] != b"\0\0\0\0"
            if end is not None:
                num_pictures += has_picture
            elif has_picture:
                together.wait()
                end = time.monotonic() + seconds
    return num_pictures / seconds


if __name__ == "__main__":
    sys.exit(main())
