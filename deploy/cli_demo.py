"""`python -m deploy demo BUNDLE`."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.backends import BACKENDS, check_backend
from deploy.bundle import Bundle, open_bundle
from deploy.cli import add_bundle, add_threads
from deploy.demo.guard import TOKEN_VARIABLE, choose_token
from deploy.demo.show import Lane, Show
from deploy.demo.sources import KINDS
from deploy.errors import LabError

if TYPE_CHECKING:
    from deploy.cli import Commands

PORT = 8000


def add_demo(commands: Commands, own: Path | None) -> None:
    """The parser of `demo`."""
    parser = commands.add_parser(
        "demo",
        help="classify a camera, a video, a folder or uploads, on a page or in the terminal",
        description="Classify pictures as they come, with two variants side by side: their answers, latency, "
        "pictures a second and watts. On a page that this machine serves, or in the terminal. "
        "Ctrl-C ends it.",
        epilog="example: python -m deploy demo runs/digits/bundle --source camera:0",
    )
    add_bundle(parser, own)
    parser.add_argument(
        "--source", default="upload", metavar="SOURCE",
        help=f"{KINDS}; upload (default) is only what the page sends",
    )  # fmt: skip
    parser.add_argument(
        "--variant", nargs="+", metavar="NAME",
        help="one or two that run side by side (default: FP32 and the first quantised one)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", nargs="+", metavar="NAME",
        help=f"one for all, or one for each --variant (default: the best that runs here); "
        f"there are: {', '.join(BACKENDS)}",
    )  # fmt: skip
    add_threads(parser)
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to serve on (default: 127.0.0.1, for this machine alone; 0.0.0.0: for all its "
        "networks, with a token)",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 takes a free one")
    parser.add_argument(
        "--token",
        help="what a viewer must know (default: one is made where others reach the address). Others here "
        f"can read a command: {TOKEN_VARIABLE} in the environment is better",
    )
    parser.add_argument("--terminal", action="store_true", help="show it in the terminal; nothing is served")
    parser.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from deploy.demo.pipeline import open_show

    token, made = choose_token(options.host, options.token)
    bundle = open_bundle(options.bundle)
    lanes = choose_lanes(bundle, options.variant, options.backend)
    with _ends_by_signal():
        try:
            with open_show(bundle, options.source, lanes, options.threads) as show:
                if options.terminal:
                    from deploy.demo.terminal import watch

                    return watch(show)
                _serve(show, bundle.name, options.host, options.port, token, made)
        except KeyboardInterrupt:  # how a demo ends
            print()
    return 0


def choose_lanes(
    bundle: Bundle, variants: Sequence[str] | None, backends: Sequence[str] | None
) -> list[Lane] | None:
    """One for each variant; None where the user chose nothing. Raises LabError."""
    for backend in backends or ():
        check_backend(backend)
    if variants is None:
        return None if backends is None else _usual_lanes(bundle, backends)
    if len(variants) > 2:
        raise LabError(f"--variant: {len(variants)} names, at most 2 run side by side")
    backends = backends or [bundle.variant(name).backend for name in variants]
    if len(backends) not in (1, len(variants)):
        raise LabError(
            f"--backend: {len(backends)} names for {len(variants)} of --variant; give one, or as many"
        )
    each = list(backends) if len(backends) > 1 else [backends[0]] * len(variants)
    return [Lane(bundle.variant(name).name, backend) for name, backend in zip(variants, each, strict=True)]


def _usual_lanes(bundle: Bundle, backends: Sequence[str]) -> list[Lane]:
    """FP32 and INT8 by one of these backends."""
    from deploy.demo.lanes import choices, default_sides

    sides = default_sides(bundle, [lane for lane in choices(bundle) if lane.backend in backends])
    if not sides:
        raise LabError(
            f"--backend {' '.join(backends)}: runs no variant of {bundle.name} here; "
            "see `python -m deploy doctor`"
        )
    return [side[0] for side in sides]


def _serve(show: Show, title: str, host: str, port: int, token: str | None, made: bool) -> None:
    from deploy.demo.server import serve

    with serve(show, title=title, host=host, port=port, token=token) as serving:
        # A browser keeps what follows # to itself, so the token is in no request line and no log of a proxy.
        fragment = f"#token={token}" if made else ""
        note = "the page asks for your token; " if token is not None and not made else ""
        print(f"demo: {serving.url}{fragment}  ({note}Ctrl-C ends it)", flush=True)
        while serving.wait(seconds=1.0):
            pass
    raise RuntimeError("the demo's server has ended by itself")


@contextmanager
def _ends_by_signal() -> Iterator[None]:
    """A service manager's SIGTERM ends it as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
