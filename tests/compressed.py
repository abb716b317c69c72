"""Networks to compress, and checkpoints of what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from configs.load import load
from configs.schema import TrainConfig
from deploy.input_spec import InputSpec
from optimize.stage import save_changed
from train.checkpoint import Checkpoint, Progress, load_checkpoint, restore_model
from train.structure import Change, build_network

SIZE = 32
SPEC = InputSpec(
    size=SIZE, resize=SIZE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), class_names=tuple("abcdefghij")
)
TRAINED = load(
    "train", TrainConfig, ["data=synthetic", "model=resnet18", "model.stem=small", "data.input.size=32"]
)


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    return build_network(TRAINED.model, SPEC.num_classes, []).eval()


def tiny() -> nn.Module:
    """Convolutions of every kind with BatchNorm statistics that folding must not ignore."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm2d(48), nn.ReLU(),
        nn.Conv2d(48, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        model(images(16))
    return model.eval()


def saved(folder: Path, model: nn.Module, structure: Sequence[Change]) -> Path:
    """A checkpoint of a `resnet18` with these changes."""
    source = Checkpoint(
        config=TRAINED,
        input_spec=SPEC,
        structure=[],
        scaler={},
        loader={"position": 0, "num_steps": 0},
        progress=Progress(),
        metrics={},
        model={},
        ema=None,
        optimizer={},
    )
    save_changed(folder, source, model, structure)
    return folder / "checkpoint.pt"


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    answer: torch.Tensor = model.eval()(images())
    return answer


def restored(path: Path) -> nn.Module:
    return restore_model(load_checkpoint(path))
