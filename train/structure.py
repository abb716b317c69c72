"""What was changed in a network after it was built: a list that a checkpoint keeps, and its doing again.

A change is a plain dict with the name of its kind under "change". It says which shapes and modules there are;
the tensors in them are the checkpoint's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from configs.schema import ModelConfig
from deploy.errors import LabError
from train.codebooks import share_weights
from train.fake_quant import add_fake_quant, set_active
from train.low_rank import thin_layers
from train.masks import mask_layers, masked_layers
from train.model import build_model

Change = dict[str, Any]
Structure = Sequence[Change]


def build_network(config: ModelConfig, num_classes: int, structure: Structure) -> nn.Module:
    """`build_model`, then every change in order; the weights are random.

    Raises LabError where a change does not fit the network.
    """
    model = build_model(config, num_classes)
    for change in structure:
        apply_change(model, change)
    return model


def apply_change(model: nn.Module, change: Change) -> None:
    """Make the change in place. Raises LabError where it names what the network does not have."""
    kind = change.get("change")
    if kind not in _KINDS:
        raise LabError(
            f"the checkpoint's network has a change {kind!r}, this edgelab knows {', '.join(_KINDS)}: "
            "use the edgelab that wrote it"
        )
    try:
        _KINDS[kind](model, change)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LabError(
            f"the checkpoint's change {kind!r} does not fit its network ({error}): use another checkpoint"
        ) from error


def channels_of(model: nn.Module) -> Change:
    """The widths of every layer: what a network from which channels were cut is rebuilt by."""
    layers = {name: _widths(module) for name, module in model.named_modules() if _widths(module)}
    return {"change": "channels", "layers": layers}


def with_masks(structure: Structure, model: nn.Module) -> list[Change]:
    """`structure` with the masks that the network has now."""
    ours: Change = {"change": "masks", "layers": masked_layers(model)}
    if not has_masks(structure):
        return [*structure, ours]
    # In their place: the tensors of a weight's parametrizations are numbered in this order.
    return [ours if change["change"] == "masks" else change for change in structure]


def has_masks(structure: Structure) -> bool:
    return find_change(structure, "masks") is not None


def find_change(structure: Structure, kind: str) -> Change | None:
    """The last one of that kind."""
    return next((change for change in reversed(structure) if change["change"] == kind), None)


def plain(model: nn.Module) -> nn.Module:
    """A copy in which every weight is a plain tensor, with its parametrizations computed into it, and every
    activation is float."""
    copied = copy.deepcopy(model)
    set_active(copied, False)
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            # Not parametrize.remove_parametrizations: it changes the class, which `model` has too.
            names = list(cast(nn.ModuleDict, module.parametrizations))
            values = {name: cast(torch.Tensor, getattr(module, name)).detach().clone() for name in names}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value))
    return copied


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one with that name."""
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).register_module(child, module)


def _widths(module: nn.Module) -> list[int] | None:
    """[inputs, outputs] of a layer that has them."""
    if isinstance(module, nn.Conv2d):
        return [module.in_channels, module.out_channels]
    if isinstance(module, nn.Linear):
        return [module.in_features, module.out_features]
    if isinstance(module, nn.BatchNorm2d):
        return [module.num_features, module.num_features]
    return None


def _set_channels(model: nn.Module, change: Change) -> None:
    for name, (inputs, outputs) in change["layers"].items():
        old = model.get_submodule(name)
        if _widths(old) != [inputs, outputs]:
            replace_module(model, name, resized(old, inputs, outputs))


def resized(old: nn.Module, inputs: int, outputs: int) -> nn.Module:
    """A layer of that kind with other channels, its weights random; a linear layer keeps its outputs."""
    if isinstance(old, nn.Conv2d):
        depthwise = old.groups == old.in_channels > 1
        return nn.Conv2d(
            inputs, outputs, old.kernel_size, old.stride, old.padding, old.dilation,  # type: ignore[arg-type]
            groups=inputs if depthwise else old.groups, bias=old.bias is not None,
        )  # fmt: skip
    if isinstance(old, nn.Linear):
        # The head, whose classes are the data's: it may be a new one.
        return nn.Linear(inputs, old.out_features, bias=old.bias is not None)
    if isinstance(old, nn.BatchNorm2d):
        return nn.BatchNorm2d(outputs, old.eps, old.momentum)
    raise ValueError(f"a {type(old).__name__} has no channels")


def _mask(model: nn.Module, change: Change) -> None:
    mask_layers(model, change["layers"])


def _set_factors(model: nn.Module, change: Change) -> None:
    for name, ranks in change["layers"].items():
        replace_module(model, name, thin_layers(model.get_submodule(name), ranks))


def _set_codebooks(model: nn.Module, change: Change) -> None:
    for name, size in change["layers"].items():
        share_weights(model.get_submodule(name), size)


def _set_fake_quant(model: nn.Module, change: Change) -> None:
    add_fake_quant(model, change["activations"], change["weights"], change["momentum"])


_KINDS: dict[str, Callable[[nn.Module, Change], None]] = {
    "channels": _set_channels,
    "masks": _mask,
    "factors": _set_factors,
    "codebooks": _set_codebooks,
    "fake_quant": _set_fake_quant,
}
