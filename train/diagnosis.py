"""Is the network learning in every layer? Norms of gradients and statistics of activations, layer by layer,
every so many steps, and a name for what is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from configs.schema import TrainConfig
from train.masks import weight_parameter
from train.monitor import Monitor, keep_past, log
from train.state import local
from train.strategy import Strategy

NAME = "diagnosis.jsonl"
VANISHING, EXPLODING = 1e-3, 1e3
"""Of the median over the layers. With new weights, those of ResNet-18, ResNet-50, ResNet-101 and MobileNetV2
lie between 0.09 and 402 of it; a layer that is a thousand times off learns so much slower, or faster."""
LOST = 2.0**-24
"""Of a weight: half a unit in the last place of float32. A smaller step is rounded away."""
DEAD = 0.95
"""Share of a ReLU's outputs that are zero, in every image of the batch."""


@dataclass(frozen=True)
class Layer:
    """Of a convolution or a linear layer in one step."""

    grad_norm: float | None
    """Of the weight, as the optimiser gets it: over the global batch, clipped. null: frozen."""
    weight_norm: float
    mean: float
    """Of the layer's outputs over the global batch, before what follows it."""
    std: float
    max_abs: float
    zeros: float | None
    """Share of zeros that the ReLU behind the layer lets out. null: there is none."""
    least_zeros: float | None
    """The same of the image that has the fewest."""
    dead: float | None
    """Share of its channels that are zero everywhere in the batch."""


def findings(layers: dict[str, Layer], lr: float) -> dict[str, str]:
    """What is wrong, in words, by a key that stays the same from step to step. `lr` is that of the config.

    Vanishing: the gradient's norm is below VANISHING x the median of the layers, or a plain step along it,
    lr x norm, is below LOST x the weight's norm. Exploding: such a step is longer than the weight and the
    norm above EXPLODING x the median (the median alone would name the last layer where the first vanish), or
    the step is EXPLODING x as long as the weight, or the norm is not finite. Dead: DEAD. A layer whose
    outputs are not finite is named too.
    """
    norms = [layer.grad_norm for layer in layers.values() if layer.grad_norm is not None]
    positive = [norm for norm in norms if 0 < norm < math.inf]
    typical = median(positive) if positive else 0.0
    found = {}
    for name, layer in layers.items():
        norm, weight = layer.grad_norm, layer.weight_norm
        if norm is not None:
            words = f"norm {norm:.3g}, median of the layers {typical:.3g}, weight {weight:.3g}"
            step = lr * norm
            apart = norm > EXPLODING * typical and step > weight
            if not math.isfinite(norm) or apart or step > EXPLODING * weight > 0:
                found[f"exploding {name}"] = f"exploding gradient in {name} ({words})"
            elif norm <= VANISHING * typical or step < LOST * weight:
                found[f"vanishing {name}"] = f"vanishing gradient in {name} ({words})"
        if layer.least_zeros is not None and layer.least_zeros > DEAD:
            found[f"dead {name}"] = (
                f"dead ReLU behind {name} ({layer.zeros:.1%} of its outputs are zero, in no image less than "
                f"{layer.least_zeros:.1%}; {layer.dead:.1%} of its channels are zero everywhere)"
            )
        if not math.isfinite(layer.max_abs):
            found[f"outputs {name}"] = f"outputs of {name} are not finite"
    return found


class Diagnosis:
    """Looks at one step in `diagnose.every`. Between them there is not a hook in the network.

    It draws nothing and changes nothing: a run is the same, bit for bit, with it and without.
    """

    def __init__(
        self, config: TrainConfig, run_dir: Path, model: nn.Module, strategy: Strategy, monitor: Monitor
    ) -> None:
        self._every = config.diagnose.every
        self._lr = config.optim.lr
        self._strategy = strategy
        self._monitor = monitor
        self._modules: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)
        }
        self._relus = [m for m in model.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
        # Of a pipeline's layers each rank has some, and the others' stand on the meta device.
        self._split = any(p.is_meta for p in model.parameters())
        # In the first step of a life its stages find out their shapes, by a pass over whatever is in memory.
        self._blind = monitor.step + 1 if self._split else None
        self._told: set[str] = set()
        self._path = run_dir / NAME
        self._handles: list[RemovableHandle] = []
        if strategy.ranks.is_first:
            keep_past(self._path, lambda kind, at: at <= monitor.step)

    def due(self, step: int) -> bool:
        """Steps count from 1; the first one is looked at too, for what is wrong from the start."""
        return bool(self._every) and step != self._blind and (step == 1 or step % self._every == 0)

    def begin(self, step: int) -> None:
        """Before the forward passes of a step."""
        if not self.due(step):
            return
        self._seen = _Activations(self._modules, self._strategy.device)
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(partial(self._seen.layer, name)))
        self._handles += [module.register_forward_hook(self._seen.relu) for module in self._relus]

    def end(self, step: int, epoch: int) -> None:
        """After its gradients are finished and before they go; on every rank."""
        if not self.due(step):
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        strategy = self._strategy
        norms = strategy.sum_parts(self._squared_norms()).tolist()
        seen = self._seen.values()
        gathered = strategy.gather(strategy.sum_parts(seen) if self._split else seen)
        if not strategy.ranks.is_first:
            return
        assert gathered is not None
        seen_by_name = self._seen.combined(gathered)
        layers = {
            name: replace(
                seen_by_name[name], grad_norm=squared**0.5 if has else None, weight_norm=weight**0.5
            )
            for name, (has, squared, weight) in zip(self._modules, norms, strict=True)
        }
        self._record(step, epoch, layers)

    @torch.no_grad()
    def _squared_norms(self) -> torch.Tensor:
        """float64 [layers, 3] of this rank's slices: whether there is a gradient, its norm, the weight's."""
        rows = []
        for module in self._modules.values():
            weight = weight_parameter(module)
            row = torch.zeros(3, dtype=torch.float64, device=self._strategy.device)
            if not weight.is_meta:
                row[2] = local(weight).float().square().sum()
                if weight.grad is not None:
                    row[0] = 1
                    row[1] = local(weight.grad).float().square().sum()
            rows.append(row)
        return torch.stack(rows)

    def _record(self, step: int, epoch: int, layers: dict[str, Layer]) -> None:
        found = findings(layers, self._lr)
        for key, words in found.items():
            if key not in self._told:  # once a life: it stays in the file as long as it is so
                self._told.add(key)
                log.warning("step %d: %s", step, words)
        numbers = {
            name: {key: value if value is not None and math.isfinite(value) else None for key, value in row}
            for name, row in ((name, asdict(layer).items()) for name, layer in layers.items())
        }
        line = {
            "kind": "diagnosis",
            "step": step,
            "epoch": epoch,
            "layers": numbers,
            "findings": list(found.values()),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        scalars = {
            f"{key}/{name}": value
            for name, row in numbers.items()
            for key, value in row.items()
            if value is not None
        }
        self._monitor.scalars("diagnosis", step, scalars)


class _Activations:
    """Sums over the forward passes of one step on this rank; nothing here waits for the GPU.

    What a ReLU lets out is put down to the layer that ran last before it: networks call one ReLU module at
    several places.
    """

    def __init__(self, modules: dict[str, nn.Module], device: torch.device) -> None:
        self._rows = {name: row for row, name in enumerate(modules)}
        self._channels = [weight_parameter(module).shape[0] for module in modules.values()]
        new = partial(torch.zeros, dtype=torch.float64, device=device)
        self._sums = new(len(modules), 5)  # outputs, their sum, their squares; ReLU's outputs, its zeros
        self._peaks = new(len(modules), 2)  # largest absolute output, largest share of a ReLU not zero
        self._alive = [new(count) for count in self._channels]
        self._last: str | None = None

    def layer(self, name: str, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        row, x = self._rows[name], output.detach().float()
        self._last = name
        self._sums[row, :3] += torch.stack([x.new_tensor(x.numel()), x.sum(), x.square().sum()])
        self._peaks[row, 0] = torch.maximum(self._peaks[row, 0], x.abs().amax())

    def relu(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._last is None:
            return
        row, channel = self._rows[self._last], 1
        positive = output.detach() != 0
        if positive.shape[channel] != self._channels[row]:
            return  # something between the two has made other channels of them
        counts = positive.flatten(1).sum(1)
        self._sums[row, 3:] += torch.stack([counts.new_tensor(positive.numel()), (~positive).sum()])
        busiest = counts.amax() / positive[0].numel()
        self._peaks[row, 1] = torch.maximum(self._peaks[row, 1], busiest)
        self._alive[row] += positive.transpose(0, channel).flatten(1).any(1)

    def values(self) -> torch.Tensor:
        """All of it as float64 [n], the same n on every rank."""
        return torch.cat([self._sums.flatten(), self._peaks.flatten(), *self._alive])

    def combined(self, replicas: list[torch.Tensor]) -> dict[str, Layer]:
        """Of all replicas' `values`: each `Layer` by name, without its norms."""
        sizes = [self._sums.numel(), self._peaks.numel(), sum(self._channels)]
        together = torch.stack([values.cpu() for values in replicas])
        sums, peaks, alive = together.split(sizes, dim=1)
        totals = sums.sum(0).reshape(-1, 5).tolist()
        largest = peaks.amax(0).reshape(-1, 2).tolist()
        channels = (alive.sum(0) > 0).split(self._channels)
        found = {}
        for name, row in self._rows.items():
            count, total, squares, outputs, zeros = totals[row]
            mean = total / count if count else 0.0
            variance = squares / count - mean**2 if count else 0.0
            found[name] = Layer(
                grad_norm=None,
                weight_norm=0.0,
                mean=mean,
                std=max(0.0, variance) ** 0.5 if math.isfinite(variance) else math.nan,
                max_abs=largest[row][0],
                zeros=zeros / outputs if outputs else None,
                least_zeros=1 - largest[row][1] if outputs else None,
                dead=1 - float(channels[row].double().mean()) if outputs else None,
            )
        return found
