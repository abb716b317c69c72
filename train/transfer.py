"""Which stages of a network train in an epoch, and how fast (Howard and Ruder 2018, sections 3.2 and 3.3)."""

from __future__ import annotations

import itertools

from torch import nn

from configs.schema import TransferConfig
from train.model import stages
from train.monitor import log


def num_frozen(config: TransferConfig, num_below: int, epoch: int) -> int:
    """How many of the `num_below` stages below the head are frozen in `epoch`, counted from 0."""
    since = epoch - config.frozen_epochs
    if since < 0:
        return num_below
    return max(0, num_below - 1 - since // config.gradual) if config.gradual else 0


def freeze(model: nn.Module, config: TransferConfig, epoch: int) -> bool:
    """Set `requires_grad` as the schedule has it in `epoch`, counted from 0; whether that changed any."""
    if not (config.frozen_epochs or config.gradual):
        return False
    parts = stages(model)
    names = list(parts)[: num_frozen(config, len(parts) - 1, epoch)]
    changed = False
    for name, parameter in _parameters(parts):
        changed |= parameter.requires_grad == (name in names)
        parameter.requires_grad_(name not in names)
    if changed:
        log.info(
            "epoch %d: %s", epoch + 1, f"{', '.join(names)} frozen" if names else "the whole network trains"
        )
    return changed


def keep_frozen(model: nn.Module) -> None:
    """In a network in training mode: what has no parameter that trains is back in evaluation mode, so that
    BatchNorm's statistics stay too."""
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def lr_scales(model: nn.Module, lr_decay: float) -> dict[nn.Parameter, float]:
    """lr_decay^k of each parameter of a stage k below the head."""
    if lr_decay == 1:
        return dict.fromkeys(model.parameters(), 1.0)
    parts = stages(model)
    depths = {name: len(parts) - 1 - place for place, name in enumerate(parts)}
    return {parameter: lr_decay ** depths[name] for name, parameter in _parameters(parts)}


def _parameters(parts: dict[str, list[nn.Module]]) -> list[tuple[str, nn.Parameter]]:
    """With the name of the stage of each."""
    modules = itertools.chain.from_iterable(
        ((name, module) for module in modules) for name, modules in parts.items()
    )
    return [(name, parameter) for name, module in modules for parameter in module.parameters()]
