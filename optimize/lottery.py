"""Lottery tickets: the weights that training shows to matter, trained alone from where they started."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.load import as_dict
from configs.schema import TrainConfig
from deploy.errors import LabError
from optimize.finetune import train
from optimize.rounds import START, begin, leave
from optimize.sparsify import Masks, choose_masks, require_reachable, sparsity_record
from optimize.stage import Context, save_changed
from train.checkpoint import (
    NAME,
    Checkpoint,
    Facts,
    Progress,
    checkpoint_from,
    load_checkpoint,
    read_facts,
    restore_model,
    save_checkpoint,
)
from train.masks import set_masks
from train.structure import Structure, build_network, with_masks
from train.weights import starting_structure, starting_weights


def ticket_schedule(sparsity: float, rounds: int) -> list[float]:
    """The sparsity after each round, of which every one takes the same share of what is left: the iterative
    pruning of Frankle and Carbin 2019, section 2."""
    return [1 - (1 - sparsity) ** (i / rounds) for i in range(1, rounds + 1)]


def early_checkpoint(rewind: str | None, original: Path) -> Path | None:
    """A name alone is that of a file beside the checkpoint, so that it holds for each of several runs."""
    if rewind is None:
        return None
    path = Path(rewind)
    return original.parent / path if path.parent == Path() else path


def rewound(trained: Checkpoint, early: Path | None) -> tuple[nn.Module, Structure]:
    """The network of a run as its training began, or as the checkpoint `early` has it; on the CPU.

    Raises LabError where that is not the network that was trained.
    """
    config, num_classes = trained.config.model, trained.input_spec.num_classes
    if early is not None:
        checkpoint = load_checkpoint(early)
        structure: Structure = checkpoint.structure
        # Not the average: the optimiser had these.
        model = restore_model(replace(checkpoint, ema=None))
    else:
        structure = starting_structure(config)
        model = _random_network(trained, structure, trained.config.seed)
        if config.weights is not None:
            model.load_state_dict(starting_weights(config, model), strict=False)
    wanted = build_network(config, num_classes, trained.structure).state_dict()
    ours = model.state_dict()
    if {key: value.shape for key, value in ours.items()} != {k: v.shape for k, v in wanted.items()}:
        what = f"lottery.rewind={early}" if early is not None else "the network that its training began with"
        raise LabError(
            f"lottery: {what} is not the network of the checkpoint, so that no weight of it can be rewound; "
            "put lottery before the stages that change the network, or give another lottery.rewind"
        )
    return model.eval(), structure


def redrawn(trained: Checkpoint, structure: Structure) -> nn.Module:
    """The same network from other random weights."""
    return _random_network(trained, structure, trained.config.seed + 1)


def ticket(start: nn.Module, masks: Masks) -> nn.Module:
    """A copy of `start` that has only the weights that the masks keep."""
    model = copy.deepcopy(start)
    set_masks(model, masks)
    return model


def lottery_stage(source: Path, folder: Path, context: Context) -> dict[str, Any]:
    """See `optimize.stage.Stage`. Leaves the ticket of the last round; the control is the same masks on other
    random weights.

    Each training is the run's own recipe, from the step that was rewound to: the learning rate and the images
    go on from there (Frankle et al. 2020, algorithm 1). The control's is the whole recipe.
    """
    config = context.config.lottery
    checkpoint = load_checkpoint(source)
    early = early_checkpoint(config.rewind, context.original)
    start, structure = rewound(checkpoint, early)
    require_reachable(restore_model(checkpoint), config.sparsity, "unstructured", config.scope, config.dense)
    whole = recipe(checkpoint.config, source, folder, context)
    begun = facts_to_rewind(early, whole) if early is not None else None
    begin(folder, config, source)

    def trained(name: str, network: nn.Module, masks: Masks, begun: Facts | None) -> float:
        own = folder / name
        file = own / START
        ours = recipe(checkpoint.config, file, own, context)
        if not file.exists():
            model = ticket(network, masks)
            changes = with_masks(structure, model)
            if begun is not None:
                own.mkdir(parents=True, exist_ok=True)
                save_checkpoint(own / NAME, under_way(begun, ours, model, changes))
            # Last: it says that the round has begun.
            save_changed(own, checkpoint, model, changes, START)
        return train(ours, own)["top1"]

    rounds = []
    last = source
    masks: Masks = {}
    for number, share in enumerate(ticket_schedule(config.sparsity, config.rounds), 1):
        model = restore_model(load_checkpoint(last))
        masks = choose_masks(model, share, "unstructured", config.scope, config.dense)
        rounds.append({"sparsity": share, "top1": trained(f"round-{number}", start, masks, begun)})
        last = folder / f"round-{number}" / NAME
    control = trained("control", redrawn(checkpoint, structure), masks, None)
    leave(last, folder)
    record = sparsity_record(restore_model(load_checkpoint(last)))
    return {**asdict(record), "rounds": rounds, "top1": rounds[-1]["top1"], "control_top1": control}


def facts_to_rewind(early: Path, whole: TrainConfig) -> Facts:
    """Where the run stood. Raises LabError where its steps are not those of the run, or it was over."""
    facts = read_facts(early)

    def steps(config: TrainConfig) -> dict[str, Any]:
        names = ("seed", "epochs", "batch_size", "accumulate", "optim")
        return {name: as_dict(config)[name] for name in names}

    theirs, ours = steps(facts.config), steps(whole)
    other = [
        f"{name}={theirs[name]!r} there, {ours[name]!r} here" for name in ours if theirs[name] != ours[name]
    ]
    if other:
        raise LabError(
            f"lottery.rewind={early} is of another run ({'; '.join(other)}), and a ticket goes on at its "
            "step: give a checkpoint of the run itself"
        )
    if facts.progress.epoch >= whole.epochs:
        raise LabError(
            f"lottery.rewind={early} is the end of the run: all {whole.epochs} epochs are done, and none is "
            "left to train a ticket; give one from early in the run"
        )
    return facts


def under_way(begun: Facts, config: TrainConfig, model: nn.Module, structure: Structure) -> Checkpoint:
    """A run of `config` that stands where `begun` did, with this network: without momentum, and its average
    and its best epoch begin here."""
    at = begun.progress
    facts = Facts(
        config=config,
        input_spec=begun.input_spec,
        structure=list(structure),
        scaler=begun.scaler,
        loader=begun.loader,
        progress=Progress(step=at.step, epoch=at.epoch, best_epoch=at.epoch),
        metrics=begun.metrics,
    )
    tensors = model.state_dict()
    return checkpoint_from(facts, tensors, tensors if config.ema_decay else None, {})


def recipe(trained: TrainConfig, start: Path, folder: Path, context: Context) -> TrainConfig:
    """The run's own training from `start`. Raises LabError where it does not fit lottery.epochs."""
    epochs = context.config.lottery.epochs or trained.epochs
    optim = trained.optim
    if epochs % optim.cycles:
        raise LabError(f"lottery.epochs {epochs} must be a multiple of the run's optim.cycles {optim.cycles}")
    return replace(
        trained,
        name=folder.name,
        run_dir=str(folder),
        resume=True,
        epochs=epochs,
        processes=context.config.processes,
        checkpoint_epochs=1,
        keep_epochs=[],
        data=context.data,
        model=replace(trained.model, weights=str(start), new_head=False),
        # The schedule keeps its form.
        optim=replace(optim, warmup_epochs=optim.warmup_epochs * (epochs / trained.epochs)),
    )


def _random_network(trained: Checkpoint, structure: Structure, seed: int) -> nn.Module:
    """As `train.run` builds it from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(trained.config.model, trained.input_spec.num_classes, structure)
