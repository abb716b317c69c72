"""`python -m scripts.train_head resampled.npz checkpoint=RUN/checkpoint.pt`: a new last layer for a network.

Fits the last linear layer anew on the features, prints macro F1 and top-1 on the validation images before and
after, and writes a checkpoint with the new layer: for export, not for going on, as the optimiser holds the
state of the old one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deploy.errors import LabError
from scripts.features import checkpoint_path, features_of, run_splits


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_head", description="Fit the last layer of a network anew on features."
    )
    parser.add_argument("features", type=Path, help="a table of scripts.features or data.resample")
    parser.add_argument("checkpoint", type=checkpoint_path, help="checkpoint=RUN/checkpoint.pt")
    parser.add_argument("--out", type=Path, help="the new one (default: head.pt beside the checkpoint)")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="features are standardised")
    options = parser.parse_args(argv)
    try:
        print(train_head(options.features, options.checkpoint, options.out, options.weight_decay))
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train_head(table: Path, path: Path, out: Path | None, weight_decay: float) -> str:
    """What is printed. Raises LabError where the features are not of this network."""
    import torch

    from data.features import Features
    from train.checkpoint import load_checkpoint, restore_model, save_checkpoint
    from train.head import fit_linear, last_linear
    from train.metrics import EvalCounts

    target = out or path.with_name("head.pt")
    if target.resolve() == path.resolve():
        raise LabError(f"--out {target} is the checkpoint itself: choose another")
    if weight_decay <= 0:
        raise LabError(f"--weight-decay {weight_decay:g} must be above 0, or there is no one best layer")
    features, checkpoint = Features.load(table), load_checkpoint(path)
    model = restore_model(checkpoint)
    layer = last_linear(model)
    ours, theirs = (layer.in_features, checkpoint.input_spec.class_names), features.values.shape[1]
    if ours != (theirs, features.class_names):
        raise LabError(
            f"{table} has {theirs} features of {len(features.class_names)} classes, the last layer of {path} "
            f"takes {ours[0]} for {len(ours[1])}: make the features from this checkpoint"
        )
    val = features_of(checkpoint, run_splits(path), "val")

    def evaluated() -> dict[str, float]:
        counts = EvalCounts(layer.out_features, torch.device("cpu"))
        with torch.inference_mode():
            counts.add(layer(torch.from_numpy(val.values)), torch.from_numpy(val.labels))
        return counts.result().values

    before = evaluated()
    weight, bias = fit_linear(features.values, features.labels, layer.out_features, weight_decay)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    after = evaluated()
    state = model.state_dict()
    ema = None if checkpoint.ema is None else state
    save_checkpoint(target, replace(checkpoint, model=state, ema=ema, metrics=after))
    lines = [f"{'':<18}{'before':>9}{'after':>9}"]
    for name, words in (
        ("macro_f1", "macro F1"),
        ("balanced_accuracy", "balanced accuracy"),
        ("top1", "top-1"),
    ):
        lines.append(f"{words:<18}{before[name]:>9.2%}{after[name]:>9.2%}")
    return "\n".join([*lines, f"{len(val.labels):,} validation images; {target}"])


if __name__ == "__main__":
    sys.exit(main())
