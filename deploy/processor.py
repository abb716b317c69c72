"""A target at one of its power modes, as the estimator's formula takes it."""

from __future__ import annotations

from deploy.errors import LabError
from deploy.latency_model import Processor
from deploy.target import Precision, Target

_RATES: dict[str, tuple[Precision, ...]] = {
    "int8": ("int8",),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    # TensorRT multiplies float32 as TF32 unless that is switched off.
    "fp32": ("tf32", "fp32"),
}


def processor_of(target: Target, mode: str | None = None) -> Processor:
    """The default mode when None; precisions that the target lacks are not in its rates.

    Raises LabError for an unknown mode, and for a target whose ceilings are measured and not written.
    """
    chosen = target.mode(mode)
    rates = {}
    for precision, kinds in _RATES.items():
        known = [target.ops_per_clock_per_sm[kind] for kind in kinds if kind in target.ops_per_clock_per_sm]
        if known and known[0] is not None:
            rates[precision] = known[0]
    if target.l2_cache_mib is None:
        raise LabError(
            f"target {target.name}: its L2 cache is not known, so nothing can be estimated; add l2_cache_mib "
            "with its source"
        )
    dla = target.dla.ops_per_clock_per_core.get("int8") if target.dla else None
    return Processor(
        num_sms=chosen.num_sms,
        clock_ghz=chosen.gpu_mhz / 1e3,
        ops_per_clock_per_sm=rates,
        memory_gb_per_s=chosen.memory_gb_per_s,
        l2_mib=target.l2_cache_mib,
        volta=target.compute_capability == "7.2",
        dla_ghz=tuple(mhz / 1e3 for mhz in chosen.dla_mhz) if dla else (),
        dla_ops_per_clock=dla or 0.0,
    )
