"""`python -m scripts.ensemble RUN/checkpoint.pt RUN/best.pt ...`: what the mean of several networks is worth.

Each checkpoint and the mean of their probabilities on the validation images of the first one's run. They may
be of different networks, snapshots of one run (optim.cycles=5), or bagged (sampling=bootstrap).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from data.build import build_loader
from data.index import Index
from data.plan import EvalPlan
from deploy.errors import LabError
from train.checkpoint import Checkpoint, load_checkpoint
from train.ensemble import (
    ScoreCounts,
    Scores,
    as_network,
    load_members,
    log_probabilities,
    mean_log_probabilities,
)
from train.images import images_of
from train.precision import autocast, choose_precision
from train.ranks import Ranks, choose_device


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for a user's mistake, told on stderr."""
    parser = argparse.ArgumentParser(prog="python -m scripts.ensemble", description=__doc__)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--data-root", help="where the first run's images are now, if they have moved")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--out", type=Path, help="default: ensemble.json beside the first checkpoint")
    options = parser.parse_args(argv)
    out = options.out or options.checkpoints[0].parent / "ensemble.json"
    try:
        if len(options.checkpoints) < 2:
            raise LabError("one checkpoint is no ensemble: give two or more")
        if options.batch < 1:
            raise LabError(f"--batch={options.batch}: give 1 or more")
        device = choose_device(options.device, Ranks(0, 1, 0, 1, launched=False))
        first = load_checkpoint(options.checkpoints[0])
        members = [first, *load_members(options.checkpoints[1:], first.input_spec)]
        folder = options.checkpoints[0].parent / "data"
        val = images_of(first, folder, options.data_root, print, "--data-root")[1].val
        for path in options.checkpoints[1:]:
            require_unseen(val, path)
        found, differ = evaluate(members, val, device, options.batch)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = [str(path) for path in options.checkpoints]
    print(table([*names, "ensemble"], found, [*(m.config.model.name for m in members), ""]))
    print(f"two members disagree on {differ:.2%} of {len(val)} images in the mean over all pairs")
    record = {
        "num_images": len(val),
        "members": [
            {"checkpoint": name, "model": member.config.model.name, **asdict(scores)}
            for name, member, scores in zip(names, members, found, strict=False)
        ],
        "ensemble": asdict(found[-1]),
        "disagreement": differ,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {out}")
    return 0


def require_unseen(val: Index, path: Path) -> None:
    """Raises LabError where a member was trained on images that it is now to be measured on."""
    index = path.parent / "data" / "train.npz"
    if not index.exists():
        print(f"{path}: no {index} beside it, so it is not known which images it was trained on")
        return
    seen = set(val.paths) & set(Index.load(index).paths)
    if seen:
        raise LabError(
            f"{path} was trained on {len(seen)} of the {len(val)} validation images of the first run, "
            f"such as {min(seen)}: the members of an ensemble need the same data and cv.fold"
        )


def evaluate(
    members: Sequence[Checkpoint], val: Index, device: torch.device, batch_size: int
) -> tuple[list[Scores], float]:
    """Of each member and of their mean; and the share of images on which two members differ, in the mean."""
    config, spec = members[0].config, members[0].input_spec
    networks = [as_network(member, device, channels_last=config.channels_last) for member in members]
    precision = choose_precision(config.precision, device)
    plan = EvalPlan(val, spec, batch_size=min(batch_size, len(val)), rank=0, world=1)
    loader = build_loader(config.loader, plan, spec, device, channels_last=config.channels_last)
    counts = [ScoreCounts(spec.num_classes, device) for _ in range(len(members) + 1)]
    differing = 0
    try:
        for images, labels in loader:
            with autocast(device, precision):
                found = log_probabilities(networks, images)
            for count, values in zip(counts, [*found, mean_log_probabilities(found)], strict=True):
                count.add(values, labels)
            best = found[:, labels >= 0].argmax(2)
            differing += int((best[:, None] != best[None]).sum())
    finally:
        loader.close()
    pairs = len(members) * (len(members) - 1) * len(val)
    return [count.result() for count in counts], differing / pairs


def table(names: Sequence[str], found: Sequence[Scores], models: Sequence[str]) -> str:
    width = max(map(len, names))
    kind = max(map(len, models))
    lines = [f"{'checkpoint':{width}}  {'model':{kind}}    top-1  macro F1     NLL     ECE"]
    lines += [
        f"{name:{width}}  {model:{kind}}  {s.top1:7.2%}  {s.macro_f1:8.4f}  {s.nll:6.4f}  {s.ece:6.4f}"
        for name, model, s in zip(names, models, found, strict=True)
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
