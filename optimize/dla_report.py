"""How much of a network DLA takes: the share of its layers, into how many pieces, what stays on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from optimize.dla_layers import LayerView, why_not

MAX_LOADABLES = 16
"""That one core holds at a time, by TensorRT's documentation."""
MANY_LOADABLES = 8
"""A switch between DLA and GPU costs a copy into the other's format and a wait: half of what fits is much."""
FEW_LAYERS = 0.8
"""Below this share on DLA the GPU does so much that it might as well do the rest."""


@dataclass(frozen=True)
class Fallback:
    """A layer that runs on the GPU instead."""

    layer: str
    op: str
    why: str


@dataclass(frozen=True)
class DlaReport:
    num_layers: int
    num_on_dla: int
    num_loadables: int
    """Pieces of the network that DLA runs without a break; TensorRT may find a way to join some."""
    fallbacks: list[Fallback]

    @property
    def share(self) -> float:
        return self.num_on_dla / max(1, self.num_layers)

    def warnings(self) -> list[str]:
        """Why this network is not for DLA, in sentences; none where it is."""
        found = []
        if self.share < FEW_LAYERS:
            found.append(
                f"WARNING: DLA takes {self.share:.0%} of the layers, less than {FEW_LAYERS:.0%}: "
                "expect it to be slower than the GPU alone"
            )
        if self.num_loadables > MAX_LOADABLES:
            found.append(
                f"WARNING: {self.num_loadables} loadables, a DLA core holds {MAX_LOADABLES}: it will not load"
            )
        elif self.num_loadables > MANY_LOADABLES:
            found.append(
                f"WARNING: {self.num_loadables} loadables, more than {MANY_LOADABLES}: "
                "each switch between DLA and GPU costs time"
            )
        return found

    def __str__(self) -> str:
        lines = [
            f"{self.num_on_dla} of {self.num_layers} layers on DLA ({self.share:.0%}), "
            f"{self.num_loadables} of {MAX_LOADABLES} loadables"
        ]
        lines += [f"  on the GPU: {f.layer} ({f.op}): {f.why}" for f in self.fallbacks]
        return "\n".join([*lines, *self.warnings()])


def dla_report(model: onnx.ModelProto) -> DlaReport:
    """Of a float network of static shape; shapes that cannot be inferred count as dynamic."""
    view = LayerView(model)
    nodes = [node for node in view.graph.node if node.op_type != "Constant"]
    reasons = {node.output[0]: why_not(node, view) for node in nodes}
    fallbacks = [
        Fallback(node.name or node.output[0], node.op_type, why)
        for node in nodes
        if (why := reasons[node.output[0]]) is not None
    ]
    taken = {name for name, why in reasons.items() if why is None}
    return DlaReport(len(nodes), len(taken), _num_loadables(view, nodes, taken), fallbacks)


def _num_loadables(view: LayerView, nodes: Sequence[onnx.NodeProto], taken: set[str]) -> int:
    """Layers of DLA that are next to each other share a loadable, unless a way from one to the other leads
    over the GPU: such a piece could not be run in one go."""
    switches: dict[str, int] = {}
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for node in nodes:
        here = node.output[0]
        makers = [view.producer[n].output[0] for n in node.input if n in view.producer]
        makers = [name for name in makers if name in switches]
        switches[here] = max((switches[m] + ((m in taken) != (here in taken)) for m in makers), default=0)
        if here in taken:
            group[here] = here
            for maker in makers:
                if switches[maker] == switches[here]:  # so it is on DLA too
                    group[root(maker)] = root(here)
    return len({root(name) for name in group})
