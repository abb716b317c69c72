"""`python -m deploy classify BUNDLE [IMAGE ...]`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.backends import made_for, open_runner
from deploy.bundle import open_bundle
from deploy.cli import add_bundle, add_runner
from deploy.demo.side import probabilities, top_guesses
from deploy.errors import LabError
from deploy.preprocess import load_image, preprocess

if TYPE_CHECKING:
    from deploy.cli import Commands


def add_classify(commands: Commands, own: Path | None) -> None:
    """The parser of `classify`."""
    parser = commands.add_parser(
        "classify",
        help="what a variant sees in images",
        description="The likeliest classes of image files, and the time of each query: the first one of a "
        "process is slower than those of `bench`, which warms up.",
        epilog="example: python -m deploy classify runs/digits/bundle --variant int8-cpu --image photo.jpg",
    )
    add_bundle(parser, own)
    add_runner(parser)
    parser.add_argument(
        "--variant", metavar="NAME", help="which variant (default: the first made for the backend)"
    )
    parser.add_argument(
        "--image", type=Path, nargs="+", metavar="FILE",
        help="which images (default: the first sample of the bundle)",
    )  # fmt: skip
    parser.set_defaults(command=_classify)


def _classify(options: argparse.Namespace) -> int:
    bundle = open_bundle(options.bundle)
    if bundle.input is None or bundle.class_output is None:
        raise LabError(
            f"{bundle.name}: does not classify image files; `bench` and `verify` run it on tensors"
        )
    files = options.image or bundle.sample_paths()[:1]
    if not files:
        raise LabError(f"{bundle.name}: has no sample images, give some with --image")
    images = [preprocess(load_image(file), bundle.input)[None] for file in files]
    variant = options.variant or made_for(bundle, options.backend)[0]
    with open_runner(bundle, variant, options.backend, threads=options.threads) as runner:
        for file, image in zip(files, images, strict=True):
            start = time.perf_counter()
            logits = runner.infer({runner.inputs[0].name: image})[bundle.class_output]
            spent_ms = 1000 * (time.perf_counter() - start)
            print(f"{file}: {variant}, {runner.backend}, {spent_ms:.1f} ms", flush=True)
            chances = probabilities(logits[0])
            if chances is None:
                print("  NaN or infinity, and so no class")
                continue
            for guess in top_guesses(chances, bundle.input.class_names):
                print(f"  {guess.probability:6.1%}  {guess.name}")
    return 0
