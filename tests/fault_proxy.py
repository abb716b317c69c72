"""A TCP proxy before an HTTP server that fails as stores fail: `python -m tests.fault_proxy UPSTREAM_PORT`.

It prints its port. A line on its standard input, `FAULT COUNT [SUFFIX]`, arms it: the next COUNT requests for
images or tars (a GET with a range, of a path that ends with SUFFIX) fail, and `ok` is printed. For `count` it
prints the number of such requests since then.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading

_BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Faults:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kind, self.left, self.suffix, self.seen = "none", 0, "", 0
        self.released = threading.Event()

    def arm(self, kind: str, count: str, suffix: str = "") -> None:
        with self.lock:
            self.released.set()  # those that were held
            self.released = threading.Event()
            self.kind, self.left, self.suffix, self.seen = kind, int(count), suffix, 0

    def next(self, head: bytes) -> str:
        request = head.split(b"\r\n", 1)[0].decode()
        if not request.startswith("GET ") or b"\nrange:" not in head.lower():
            return "none"
        if not request.split(" ")[1].partition("?")[0].endswith(self.suffix):
            return "none"
        with self.lock:
            self.seen += 1
            if self.left == 0:
                return "none"
            self.left -= 1
            return self.kind


def serve(client: socket.socket, upstream: int, faults: Faults) -> None:
    """One request: both sides are told to close after it."""
    with socket.create_connection(("127.0.0.1", upstream)) as server:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = client.recv(65536)
            if not piece:
                return
            head += piece
        fault = faults.next(head)
        if fault == "503":
            client.sendall(_BUSY)
            return
        if fault == "slow":
            faults.released.wait()  # until armed anew: longer than any timeout
            return
        head, _, body = head.partition(b"\r\n\r\n")
        server.sendall(
            re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head) + b"\r\nConnection: close\r\n\r\n" + body
        )
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += server.recv(65536)
        length = (
            int(re.findall(rb"(?i)content-length: (\d+)", answer)[0]) if fault in ("drop", "short") else 0
        )
        if fault == "short":  # a body that is whole by its own account
            answer = re.sub(rb"(?i)\r\nx-amz-checksum-[^\r]*", b"", answer)
            answer = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % (length // 2), answer)
        left = answer.index(b"\r\n\r\n") + 4 + length // 2 if fault in ("drop", "short") else None
        while answer:
            client.sendall(answer[:left])
            if left is not None:
                left -= len(answer[:left])
                if left == 0:
                    return
            answer = server.recv(65536)


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)


def guarded(client: socket.socket, upstream: int, faults: Faults) -> None:
    with client:
        with contextlib.suppress(OSError):  # a client that went away
            serve(client, upstream, faults)
        # Said and not left to close(), which sends nothing while the other thread still reads from it.
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


def accept(listener: socket.socket, upstream: int, faults: Faults) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=guarded, args=(client, upstream, faults), daemon=True).start()


def main() -> None:
    faults = Faults()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=accept, args=(listener, int(sys.argv[1]), faults), daemon=True).start()
    for line in sys.stdin:  # its end is ours
        if line.strip() == "count":
            print(faults.seen, flush=True)
        else:
            faults.arm(*line.split())
            print("ok", flush=True)


if __name__ == "__main__":
    main()
