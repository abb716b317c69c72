"""Augmentation by windows and flips alone, with what else is asked for."""

from __future__ import annotations

from configs.images import AugmentConfig, ErasingConfig, RandAugmentConfig


def augmentation(
    min_scale: float,
    max_ratio: float,
    flip: bool,
    *,
    num_ops: int = 0,
    magnitude: int = 9,
    erasing: float = 0.0,
) -> AugmentConfig:
    return AugmentConfig(
        min_scale, max_ratio, flip, RandAugmentConfig(num_ops, magnitude), ErasingConfig(erasing, 0.02, 0.33)
    )
