"""The doctor on a bundle: which of its variants run here, by which backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deploy.backends import BACKENDS, cannot_run
from deploy.manifest import Bundle, Variant
from deploy.module import Module


@dataclass(frozen=True)
class VariantHere:
    """backends: for each, why it does not run the variant here; None where it does."""

    name: str
    precision: str
    made_for: str
    backends: Mapping[str, str | None]

    @property
    def runs(self) -> bool:
        return any(reason is None for reason in self.backends.values())

    def __str__(self) -> str:
        there = [name for name, reason in self.backends.items() if reason is None]
        if not there:
            by_reason: dict[str | None, list[str]] = {}
            for name, reason in self.backends.items():
                by_reason.setdefault(reason, []).append(name)
            reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
            return f"{self.precision}, made for {self.made_for}, cannot run here. {reasons}"
        words = f"{self.precision} by {', '.join(there)}"
        if self.made_for not in there:
            why = self.backends.get(self.made_for) or "no backend of these commands"
            words += f"; made for {self.made_for}, which cannot run it here: {why}"
        return words


def judge(variant: Variant, backends: Mapping[str, str | None], module: Module) -> VariantHere:
    """backends: for each, why it is not usable here at all; None where it is."""
    return VariantHere(
        variant.name,
        variant.precision,
        variant.backend,
        {
            name: cannot_run(variant, name) or backends[name] or _lacks(variant, name, module)
            for name in BACKENDS
        },
    )


def judge_all(bundle: Bundle, backends: Mapping[str, str | None], module: Module) -> tuple[VariantHere, ...]:
    return tuple(judge(variant, backends, module) for variant in bundle.variants)


def _lacks(variant: Variant, backend: str, module: Module) -> str | None:
    """TensorRT computes in what the GPU has; a weight-only format is no such type."""
    target = module.target
    if backend == "tensorrt" and target and variant.precision in ("fp16", "bf16", "int8"):
        return None if target.supports(variant.precision) else target.lacks(variant.precision)
    return None
