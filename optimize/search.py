"""`python -m optimize.search checkpoint=RUN/checkpoint.pt budget=20`: which chain is worth it.

Optuna proposes how much to prune, to factorise, and at which precision; each proposal is a chain, measured;
what no other beats in accuracy, latency and size at once goes into a bundle.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.compress import Compression, OptimizeConfig, SearchConfig, StageName
from configs.load import run_command
from deploy.errors import LabError

if TYPE_CHECKING:
    from optimize.trials import Point, Tried

RECORD = "search.json"
_FREE = {"checkpoint", "out", "data_root", "processes", "gate"}
"""Settings that another part of the same search may have otherwise; the checkpoint counts by its bytes."""


def main(config: SearchConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: a mistake in the config is told before that.
    from data.reader import local_copies, reader_of
    from deploy.bundle import file_sha256
    from deploy.table import format_table
    from optimize.front import format_trials, variants_of
    from optimize.pack import Packing, pack
    from optimize.trials import next_point
    from train.checkpoint import read_facts
    from train.images import images_of
    from train.result import write_json

    path = Path(config.checkpoint)
    facts = read_facts(path)
    out = Path(config.out) if config.out else path.parent / "search"
    settings = {
        field.name: value
        for field in fields(Compression)
        if field.name not in _FREE and (value := asdict(config)[field.name]) is not None
    }
    settings["sha256"] = file_sha256(path)
    tried = read_trials(out, settings)
    while len(tried) < config.budget and (point := next_point(tried, config.space, config.seed)):
        say(f"\ntrial {len(tried) + 1} of {config.budget}: {point.network}, {point.precision}")
        tried.append(evaluate(point, config, out))
        write_json(out / RECORD, {"settings": settings, "trials": [asdict(one) for one in tried]})
    if len(tried) < config.budget:
        say(f"budget={config.budget}, but the space has {len(tried)} points: all are tried")
    say(f"\n{format_trials(tried, config.gate.max_drop)}\n")

    data, splits = images_of(facts, out / "data", config.data_root, say)
    with tempfile.TemporaryDirectory() as folder:
        how = Packing(
            name=facts.config.name,
            spec=facts.input_spec,
            val=local_copies(splits.val, reader_of(data, splits.val), Path(folder, "val")),
            bench=config.bench,
            gate=config.gate,
            num_samples=config.num_samples,
            seed=config.seed,
            command=shlex.join(["python", "-m", "optimize.search", *overrides]),
        )
        packed = pack(variants_of(tried, out, facts), how, out, say)
    say("\n".join(["", format_table(packed.measurements), *packed.marks]))
    say(f"\nbundle: {packed.bundle.root}\nreport: python -m scripts.report {out}")


def read_trials(out: Path, settings: dict[str, Any]) -> list[Tried]:
    """Those of a search that was interrupted. Raises LabError where they were made with other settings."""
    from optimize.trials import Point, Tried

    path = out / RECORD
    try:
        raw = json.loads(path.read_text())
        found = [Tried(**(one | {"point": Point(**one["point"])})) for one in raw["trials"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} is no record of a search ({error!r}): remove it, or give another out=..."
        ) from error
    other = sorted(key for key, value in settings.items() if raw["settings"].get(key) != value)
    if other:
        raise LabError(
            f"{out} holds a search with other settings ({', '.join(other)}): give another out=..., or "
            "remove it"
        )
    return found


def evaluate(point: Point, config: SearchConfig, out: Path) -> Tried:
    """Run the point's chain, which goes on where an earlier one of the same network was."""
    from optimize.chain import run_chain
    from optimize.trials import Tried

    folder = out / "chains" / point.network
    stages = stages_of(point)
    shared = {field.name: getattr(config, field.name) for field in fields(Compression)}
    chain = OptimizeConfig(**(shared | {"out": str(folder), "stages": stages or ["quantize"]}))
    if point.keep < 1:
        chain = replace(chain, prune=replace(chain.prune, keep=point.keep))
    if point.energy < 1:
        chain = replace(chain, factorise=replace(chain.factorise, by="energy", energy=point.energy))
    records = run_chain(chain, say)
    first, last = records[0], records[len(stages)]
    if not (first.latency_ms and last.speedup):
        raise LabError(f"{folder} holds stages that were not timed: give another out=..., or remove it")
    return Tried(
        point=point,
        folder=f"{folder.relative_to(out)}/{len(stages)}-{last.stage}",
        top1=last.top1,
        drop=last.drop,
        latency=1 / last.speedup,
        size=last.onnx_bytes / first.onnx_bytes,
        macs=last.macs / first.macs,
        parameters=last.parameters,
    )


def stages_of(point: Point) -> list[StageName]:
    """None for the network as it was."""
    stages: list[StageName] = []
    if point.keep < 1:
        stages.append("prune")
    if point.energy < 1:
        stages.append("factorise")
    if stages:
        stages.append("finetune")
    if point.precision == "qat":
        stages.append("qat")
    return stages if point.precision == "fp32" else [*stages, "quantize"]


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    run_command("search", SearchConfig, main)
