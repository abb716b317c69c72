"""`python -m scripts.features checkpoint=RUN/checkpoint.pt`: what the network makes of the training images.

Writes features.npz: `features` float32 [n, d] before the last linear layer, of images prepared as for
evaluation, with their `labels`, `paths` and `class_names`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import LabError

if TYPE_CHECKING:
    from data.features import Features
    from data.prepare import Splits
    from train.checkpoint import Checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.features",
        description="Write what goes into the last linear layer of a network, for every training image.",
    )
    parser.add_argument("checkpoint", type=checkpoint_path, help="checkpoint=RUN/checkpoint.pt")
    parser.add_argument("--out", type=Path, help="the table (default: features.npz beside the checkpoint)")
    options = parser.parse_args(argv)
    # torch takes seconds to import: a mistake on the command line is told before that.
    from train.checkpoint import load_checkpoint

    try:
        checkpoint = load_checkpoint(options.checkpoint)
        found = features_of(checkpoint, run_splits(options.checkpoint), "train")
        out = options.out or options.checkpoint.with_name("features.npz")
        found.save(out)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {found.values.shape[0]:,} x {found.values.shape[1]:,}")
    return 0


def checkpoint_path(text: str) -> Path:
    """Of `checkpoint=PATH`, as our other commands have it, or of the path alone."""
    return Path(text.removeprefix("checkpoint="))


def run_splits(checkpoint: Path) -> Splits:
    """The images of the run that a checkpoint lies in. Raises LabError where they are not recorded there."""
    from data.prepare import Splits

    folder = checkpoint.parent / "data"
    try:
        return Splits.load(folder)
    except OSError as error:
        raise LabError(
            f"{folder} does not hold the run's images ({error}): use a run folder's own"
        ) from error


def features_of(checkpoint: Checkpoint, splits: Splits, split: str) -> Features:
    """Of the "train" or the "val" images. Raises LabError as the loader does."""
    from data.calibration import image_batches
    from data.features import Features
    from train.checkpoint import restore_model
    from train.head import head_inputs

    index = splits.train if split == "train" else splits.val
    batches = image_batches(index, checkpoint.input_spec, checkpoint.config.loader)
    values = head_inputs(restore_model(checkpoint), batches)
    return Features(values, index.labels, index.class_names, index.paths)


if __name__ == "__main__":
    sys.exit(main())
