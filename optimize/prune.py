"""Structured pruning: whole channels go, where they matter least, until the network costs what it may."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from configs.compress import PruneConfig
from data.calibration import choose_images, labelled_batches
from deploy.errors import LabError
from deploy.layers import LayerTable
from optimize.importance import Scores, channel_scores
from optimize.layer_latency import measure_here, table_cost
from optimize.rounds import START, begin, do_rounds
from optimize.stage import Context, require_plain, save_changed
from optimize.widths import ChannelGroups, Cost, Layer, Widths, channel_groups, macs, parameters
from train.checkpoint import NAME, load_checkpoint, read_facts, restore_model
from train.structure import channels_of, has_masks

LATENCY = "latency.json"


@dataclass(frozen=True)
class PruneRecord:
    """Costs in the unit of the constraint: MACs, parameters, or ms as the sum of measured layers."""

    before: float
    after: float
    widths_before: dict[str, int]
    widths_after: dict[str, int]


def share_schedule(keep: float, rounds: int) -> list[float]:
    """The share that is left after each round, of which every one leaves the same share of what it finds.

    Geometric: a network that has become small can give up no more of itself at once than a large one.
    """
    return [keep ** (i / rounds) for i in range(1, rounds + 1)]


def prune(
    model: nn.Module,
    size: int,
    config: PruneConfig,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    seed: int,
    table: LayerTable | None = None,
    begun: PruneRecord | None = None,
    share: float | None = None,
) -> PruneRecord:
    """Cut channels of `model` in place until it costs at most `share` of what it did; None is `config.keep`.

    `batches`: images float32 [n, 3, size, size] and labels int64 [n], read for importance=taylor alone.
    `table`: the times of its layers, for by=latency alone. `begun`: of the network before the first round,
    from whose cost and widths the shares count; None is this one. Raises LabError where the constraint cannot
    be met, and for weights that are computed from others; the network is as it was then.
    """
    require_plain(model, "prune")
    groups = channel_groups(model, size)
    cost = cost_of(config, table)
    begun = begun or standing(groups, cost)
    limits = limits_of(groups, cost, config, begun)
    scores = channel_scores(model, groups, config.importance, batches, seed)
    choose = _uniform if config.scope == "uniform" else _global
    before = groups.widths
    widths = choose(groups, scores, limits, cost, (share or config.keep) * begun.before, config)
    record = replace(begun, after=groups.cost(cost, widths), widths_after=dict(widths))
    groups.cut({name: least_important(scores[name], before[name] - widths[name]) for name in before})
    return record


def standing(groups: ChannelGroups, cost: Cost) -> PruneRecord:
    """Of a network of which nothing is cut."""
    now = groups.cost(cost, groups.widths)
    return PruneRecord(now, now, groups.widths, groups.widths)


def limits_of(groups: ChannelGroups, cost: Cost, config: PruneConfig, begun: PruneRecord) -> dict[str, int]:
    """The least channels of each group. Raises LabError where they cost more than config.keep."""
    limits = {
        name: min(width, _least(begun.widths_before[name], config)) for name, width in groups.widths.items()
    }
    least = groups.cost(cost, limits)
    if least > config.keep * begun.before:
        raise LabError(
            f"prune.keep {config.keep:g} of the {config.by} cannot be met: with prune.max_cut "
            f"{config.max_cut:g} and round_to {config.round_to} at least {least / begun.before:.3f} is left; "
            "keep more, or cut more of a layer"
        )
    return limits


def prune_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. Each round has a folder; killed, the stage goes on in the one it was in."""
    config, size = context.config.prune, context.spec.size
    if has_masks(read_facts(source).structure):
        raise LabError(
            f"prune: {source} has weights that are masked one by one, and the masks do not go along when "
            "channels are cut: cut first, as in stages=[prune,sparsify]"
        )
    first = restore_model(load_checkpoint(source))
    require_plain(first, "prune")
    groups = channel_groups(first, size)
    table = layer_times(groups, config, context.config.latency.threads, folder / LATENCY)
    cost = cost_of(config, table)
    begun = standing(groups, cost)
    limits_of(groups, cost, config, begun)  # before the hours of training
    begin(folder, config, source)
    if table is not None:
        table.write(folder / LATENCY)

    def change(checkpoint_file: Path, own: Path, share: float) -> None:
        checkpoint = load_checkpoint(checkpoint_file)
        model = restore_model(checkpoint)
        images = choose_images(context.splits.train, config.num_images, context.config.seed)
        batches = labelled_batches(images, context.spec, context.loader, context.data, "scores")
        prune(model, size, config, batches, context.config.seed, table, begun, share)
        # The last word on the widths is enough to rebuild them.
        others = [other for other in checkpoint.structure if other["change"] != "channels"]
        save_changed(own, checkpoint, model, [*others, channels_of(model)], START)

    shares = share_schedule(config.keep, config.rounds)
    rounds = do_rounds(source, folder, context, config.finetune, shares, change)
    left = standing(channel_groups(restore_model(load_checkpoint(folder / NAME)), size), cost)
    record = replace(begun, after=left.after, widths_after=left.widths_after)
    return {**asdict(record), "rounds": rounds}


def cost_of(config: PruneConfig, table: LayerTable | None) -> Cost:
    """What `prune.by` counts."""
    if config.by == "latency":
        assert table is not None, "by=latency takes the times of the layers"
        return table_cost(table, config.latency_table or "the table of this machine")
    return {"macs": macs, "parameters": parameters}[config.by]


def layer_times(groups: ChannelGroups, config: PruneConfig, threads: int, file: Path) -> LayerTable | None:
    """What by=latency reads: the times that `file` has, or those of prune.latency_table, or of this machine.

    None for by=macs and parameters. Raises LabError.
    """
    if config.by != "latency":
        return None
    if file.exists():
        return LayerTable.read(file)
    if config.latency_table is not None:
        return LayerTable.read(Path(config.latency_table))
    return measure_here(groups.layers, threads)


def least_important(scores: torch.Tensor, count: int) -> list[int]:
    order = torch.argsort(scores, stable=True)
    chosen: list[int] = order[:count].tolist()
    return chosen


def _least(width: int, config: PruneConfig) -> int:
    """Channels that a group of so many must keep: a multiple of round_to where it has as many."""
    step = config.round_to
    kept = math.ceil(width * (1 - config.max_cut) / step) * step
    return min(width, max(kept, step))


def _uniform(
    groups: ChannelGroups, scores: Scores, limits: Widths, cost: Cost, budget: float, config: PruneConfig
) -> dict[str, int]:
    """The same share of every group: the largest that fits."""

    def at(share: float) -> dict[str, int]:
        rounded = {
            name: round(width * share / config.round_to) * config.round_to
            for name, width in groups.widths.items()
        }
        return {name: min(width, max(limits[name], rounded[name])) for name, width in groups.widths.items()}

    shares = [step / 1000 for step in range(1000, -1, -1)]
    return next(at(share) for share in shares if groups.cost(cost, at(share)) <= budget)


def _global(
    groups: ChannelGroups, scores: Scores, limits: Widths, cost: Cost, budget: float, config: PruneConfig
) -> dict[str, int]:
    """The channels that matter least wherever they are, `round_to` at a time.

    Where scores are rises of the loss, those go first that matter least for what they cost (Shen et al. 2022,
    HALP), and with by=latency under any score.
    """
    for_cost = config.importance == "taylor" or config.by == "latency"
    whole, widths = groups.widths, groups.widths
    ordered = {name: torch.sort(scores[name]).values.double() for name in widths}
    reading: dict[str, list[Layer]] = {name: [] for name in widths}
    for layer in groups.layers:
        for name in {layer.in_group, layer.out_group} - {None}:
            assert name is not None
            reading[name].append(layer)

    def step(name: str, taken: int) -> Step:
        less = {**widths, name: widths[name] - taken}
        saved = sum(cost(layer, *layer.at(widths)) - cost(layer, *layer.at(less)) for layer in reading[name])
        gone = whole[name] - max(widths[name], less[name])
        lost = ordered[name][gone : gone + abs(taken)]
        per_cost = lost.sum() / max(saved if taken > 0 else -saved, 1e-9)
        return Step(float(per_cost if for_cost else lost.mean()), name, taken, saved)

    total = groups.cost(cost, widths)
    while total > budget:
        # A width that round_to does not divide comes down to a multiple first.
        cuts = {name: width % config.round_to or config.round_to for name, width in widths.items()}
        cut = min(step(name, cut) for name, cut in cuts.items() if widths[name] - cut >= limits[name])
        widths[cut.name] -= cut.taken
        total -= cut.saved
    while True:  # the last cut may have made room for an earlier one
        backs = [
            step(name, -min(config.round_to, whole[name] - width))
            for name, width in widths.items()
            if width < whole[name]
        ]
        fitting = [back for back in backs if total - back.saved <= budget]
        if not fitting:
            return widths
        back = max(fitting)
        widths[back.name] -= back.taken
        total -= back.saved


class Step(NamedTuple):
    """Channels of one group that go, or come back where `taken` is negative."""

    rank: float
    """What they matter, for what they cost."""
    name: str
    taken: int
    saved: float
