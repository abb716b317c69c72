"""The widths of a network: which channels can only go together, and what each layer costs at given widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch_pruning as tp
from torch import nn

Widths = Mapping[str, int]
"""Channels of each group, by the group's name."""


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer, with what its cost depends on besides the widths."""

    name: str
    module: nn.Module
    """As it is before channels are cut."""
    in_size: tuple[int, int]
    """Of the input picture, px; 1 x 1 for a linear layer."""
    out_size: tuple[int, int]
    inputs: int
    outputs: int
    """Channels as the network has them now."""
    in_group: str | None
    """The group that its input channels belong to; None: they stay."""
    out_group: str | None

    @property
    def kernel(self) -> tuple[int, int]:
        """1 x 1 for a linear layer."""
        return cast(tuple[int, int], getattr(self.module, "kernel_size", (1, 1)))

    @property
    def depthwise(self) -> bool:
        return _is_depthwise(self.module)

    def at(self, widths: Widths) -> tuple[int, int]:
        """Input and output channels at these widths."""
        return (
            widths.get(self.in_group, self.inputs) if self.in_group is not None else self.inputs,
            widths.get(self.out_group, self.outputs) if self.out_group is not None else self.outputs,
        )


Cost = Callable[[Layer, int, int], float]
"""(layer, input channels, output channels) -> what it costs, in a unit of its own."""


@dataclass(frozen=True)
class ChannelGroups:
    """The channels of a network that can be cut, in groups that go together: a residual stage is one."""

    graph: Any
    groups: dict[str, Any]
    """torch-pruning's groups, of all their channels, by the name of their root layer."""
    layers: tuple[Layer, ...]

    @property
    def widths(self) -> dict[str, int]:
        return {name: len(group[0].idxs) for name, group in self.groups.items()}

    def cost(self, of: Cost, widths: Widths) -> float:
        return sum(of(layer, *layer.at(widths)) for layer in self.layers)

    def cut(self, channels: Mapping[str, Iterable[int]]) -> None:
        """Remove these channels from the network, in place; the object is of no use afterwards."""
        for name, indices in channels.items():
            root = self.groups[name][0].dep
            doomed = sorted(indices)
            if doomed:
                self.graph.get_pruning_group(root.target.module, root.handler, doomed).prune()


def channel_groups(model: nn.Module, size: int) -> ChannelGroups:
    """Of a network for images of size x size; its classes are not among the channels to cut."""
    image = torch.zeros(1, 3, size, size)
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=image)
    names = {module: name for name, module in model.named_modules()}
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    groups: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for group in graph.get_all_groups(ignored_layers=[head], root_module_types=[nn.Conv2d]):
        root = names[group[0].dep.target.module]
        groups[root] = group
        for dependency, _ in group:
            name = names.get(dependency.target.module)
            if name is None:  # an operation such as an addition
                continue
            if graph.is_out_channel_pruning_fn(dependency.handler):
                outputs[name] = root
                if _is_depthwise(dependency.target.module):
                    inputs[name] = root
            if graph.is_in_channel_pruning_fn(dependency.handler):
                inputs[name] = root
    layers = [
        Layer(name, module, in_size, out_size, *_channels(module), inputs.get(name), outputs.get(name))
        for name, (module, in_size, out_size) in layer_sizes(model, size).items()
    ]
    return ChannelGroups(graph, groups, tuple(layers))


def macs(layer: Layer, inputs: int, outputs: int) -> float:
    """Multiply-accumulates of one image."""
    height, width = layer.out_size
    return weights(layer, inputs, outputs) * height * width


def weights(layer: Layer, inputs: int, outputs: int) -> float:
    kernel = layer.kernel[0] * layer.kernel[1]
    return kernel * outputs * (1 if layer.depthwise else inputs)


def parameters(layer: Layer, inputs: int, outputs: int) -> float:
    """With the bias of a linear layer, or the scale and shift of the BatchNorm behind a convolution."""
    return weights(layer, inputs, outputs) + outputs * (2 if layer.module.bias is None else 1)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _channels(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Conv2d):
        return module.in_channels, module.out_channels
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features


def layer_sizes(model: nn.Module, size: int) -> dict[str, tuple[nn.Module, tuple[int, int], tuple[int, int]]]:
    """Each convolution and linear layer with the pictures that go in and come out, px; 1 x 1 for a linear
    layer."""
    found: dict[str, tuple[nn.Module, tuple[int, int], tuple[int, int]]] = {}

    def picture(tensor: torch.Tensor) -> tuple[int, int]:
        return (tensor.shape[-2], tensor.shape[-1]) if tensor.ndim == 4 else (1, 1)

    def note(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        return lambda module, given, made: found.update({name: (module, picture(given[0]), picture(made))})

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, size, size))
    model.train(training)
    for hook in hooks:
        hook.remove()
    return found
