"""The variants of a model of anyone's to a bundle that was measured. See `optimize.pack`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.quantize import BenchConfig, GateConfig
from deploy.backends import open_runner
from deploy.bench import bench
from deploy.bundle import Bundle
from deploy.input_spec import InputSpec
from deploy.results import Accuracy, Measurement
from deploy.score import score
from deploy.target import Target
from deploy.tensors import Samples
from optimize.bundle import build_tensor_bundle
from optimize.foreign import Foreign
from optimize.foreign_samples import choose
from optimize.gate import judge_closeness
from optimize.pack import Judged, Packed, put_in_place, with_placement
from optimize.variants import Made

_BATCH = 32


@dataclass(frozen=True)
class ForeignPacking:
    """How such a bundle is made and measured."""

    name: str
    foreign: Foreign
    spec: InputSpec | None
    class_output: str | None
    test: Samples
    """On which the variants are compared, and of which the bundle's samples are taken."""
    bench: BenchConfig
    gate: GateConfig
    min_snr_db: float | None
    num_samples: int
    seed: int
    command: str
    targets: Sequence[Target] = ()
    """Devices that it is for."""


def pack_foreign(made: Sequence[Made], how: ForeignPacking, out: Path, say: Callable[[str], None]) -> Packed:
    """`out/bundle` and `out/results.jsonl`. `made[0]` is what others are held against. Raises LabError."""
    made = with_placement(made, say)
    chosen = how.test.take(choose(len(how.test), how.num_samples, how.seed))
    build = partial(
        build_tensor_bundle,
        name=how.name,
        foreign=how.foreign,
        spec=how.spec,
        class_output=how.class_output,
        models={one.variant.name: one.model for one in made},
        answers={one.variant.name: one.answers for one in made if one.answers},
        artefacts={one.variant.name: one.artefacts for one in made},
        targets=how.targets,
        samples=next(chosen.batches(len(chosen))),
        commands=[how.command],
    )
    batches = how.bench.batches
    if how.foreign.inputs[0].shape[0] is not None and batches != [1]:
        say(f"the model takes a batch of 1 only: measured at that, not at bench.batches {batches}")
        batches = [1]

    def measure(draft: Bundle) -> tuple[list[Measurement], dict[str, Accuracy]]:
        measurements = bench(
            draft,
            threads=how.bench.threads,
            batches=[min(batches)],
            throughput_batches=[max(batches)],
            seconds=how.bench.seconds,
            tensors=how.test,
        )
        found = {m.variant: m.accuracy for m in measurements}
        return measurements, found | _others(draft, made, found, how)

    def judged(found: dict[str, Accuracy]) -> Judged:
        return judge_closeness(made, found, how.gate, how.min_snr_db)

    return put_in_place(build, made, measure, judged, out, say)


def _others(
    draft: Bundle, made: Sequence[Made], found: dict[str, Accuracy], how: ForeignPacking
) -> dict[str, Accuracy]:
    """Of the variants that are not for this machine's timing, but have integers or roundings of their own."""
    names = [one.same_as for one in made if one.same_as not in found]
    if not names:
        return {}
    reference = made[0].variant.name
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(draft, name, threads=how.bench.threads))
            for name in [reference, *names]
        }
        scores = score(runners, how.test.batches(_BATCH), how.class_output, reference)
    return {name: scores[name] for name in names}
