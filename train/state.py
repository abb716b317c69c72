"""A network's and an optimiser's tensors by name: the form in which every strategy saves and loads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from deploy.errors import LabError
from train.strategy import Tensors


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's slice of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> Tensors:
    """`<parameter>/<state>` -> tensor. Learning rates and the like follow from config and step."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def load_model(model: nn.Module, saved: Tensors) -> None:
    """Copy whole tensors into the network, or this rank's parts of them.

    Raises LabError where they do not fit.
    """
    ours = model.state_dict()
    wrong = [f"{name}: missing" for name in ours.keys() - saved.keys()]
    wrong += [f"{name}: not in this network" for name in saved.keys() - ours.keys()]
    wrong += [
        f"{name}: {tuple(saved[name].shape)} in the checkpoint, {tuple(ours[name].shape)} in the network"
        for name in ours.keys() & saved.keys()
        if saved[name].shape != ours[name].shape
    ]
    if wrong:
        shown = "\n".join(f"  - {line}" for line in sorted(wrong)[:10])
        raise LabError(
            f"the checkpoint does not fit the network in {len(wrong)} tensors:\n{shown}\n"
            "use the checkpoint of this model.name and data"
        )
    for name, value in ours.items():
        _copy(value, saved[name])


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: Tensors) -> None:
    """The inverse of `optimizer_tensors`, from whole tensors."""
    for name, value in empty_optimizer_tensors(optimizer, model, saved).items():
        _copy(value, saved[name])


def empty_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, like: dict[str, Any]
) -> Tensors:
    """Make room in the optimiser for those tensors named and shaped in `like` that this rank is to have."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, saved in like.items():
        parameter = parameters[name.rpartition("/")[0]]
        if parameter.is_meta:
            continue
        state = optimizer.state[parameter]
        if saved.shape == parameter.shape:
            state[name.rpartition("/")[2]] = torch.zeros_like(parameter, requires_grad=False)
        else:
            state[name.rpartition("/")[2]] = torch.zeros(saved.shape, device=parameter.device)
    return optimizer_tensors(optimizer, model)


@torch.no_grad()
def _copy(ours: torch.Tensor, saved: torch.Tensor) -> None:
    if ours.is_meta:
        return
    if isinstance(ours, DTensor):
        # Every rank has the whole tensor, so none need be sent.
        saved = distribute_tensor(
            saved.to(ours.device), ours.device_mesh, ours.placements, src_data_rank=None
        ).to_local()
    local(ours).copy_(saved)
