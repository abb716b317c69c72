"""The torture's own parts, and a short torture."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from scripts.torture_damage import damage
from scripts.torture_runs import SAVES, STEPS, STRATEGIES
from scripts.torture_scenarios import KINDS, draw_kill, scenarios, share_kills
from scripts.torture_table import BEGIN, END, Case, rows, write_markdown
from tests.processes import python
from train.checkpoint import NAME


@pytest.mark.parametrize("kills", [0, 1, 3, 9, 20])
def test_every_kill_is_shared_out(kills: int) -> None:
    shares = share_kills(kills, STRATEGIES)
    assert sum(times for *_, times in shares) == kills
    assert {times for *_, times in shares} <= {1, 2}
    if kills >= 9:
        assert {(kind, strategy) for kind, strategy, _ in shares} == {
            (kind, strategy) for kind in KINDS for strategy in STRATEGIES
        }


def test_kills_are_drawn_from_the_seed_and_inside_the_run() -> None:
    sizes = {"single": {0: 1000}, "ddp": {0: 1000}, "fsdp": {0: 500, 1: 400}}

    def faults(seed: int) -> list[object]:
        draw = random.Random(seed)
        return [draw_kill(draw, kind, s, sizes[s]) for kind in KINDS for s in STRATEGIES for _ in range(20)]

    assert faults(0) == faults(0) != faults(1)
    drawn = [draw_kill(random.Random(n), "killed in a save", "fsdp", sizes["fsdp"]) for n in range(200)]
    assert {fault.rank for fault in drawn} == {0, 1}
    assert {fault.where for fault in drawn} == {"write", "file"}
    assert all(fault.after < sizes["fsdp"][fault.rank] for fault in drawn if fault.where == "write")
    assert {fault.at for fault in drawn} == set(range(1, SAVES + 1))
    steps = [draw_kill(random.Random(n), "killed in a step", "ddp", sizes["ddp"]) for n in range(200)]
    assert {fault.at for fault in steps} == set(range(1, STEPS))
    assert {fault.what for fault in steps} == {"kill", "kill all"}
    # Only rank 0 writes: another rank is killed while it does.
    writes = [draw_kill(random.Random(n), "killed in a save", "ddp", sizes["ddp"]) for n in range(200)]
    assert {fault.where for fault in writes if fault.rank == 1} == {"saving"}


def test_every_scenario_is_played_with_every_strategy() -> None:
    names = Counter((name, strategy) for name, strategy, _ in scenarios(9, STRATEGIES))
    assert {strategy for _, strategy in names} == set(STRATEGIES)
    missing = {name for name, _ in names} - {name for name, strategy in names if strategy == "single"}
    assert missing == {"hang in a collective"}


@pytest.mark.parametrize("how", ["truncated", "emptied", "with a flipped bit"])
def test_damage_is_damage(how: str, tmp_path: Path) -> None:
    torch.save({"format": 2, "model": torch.randn(1000)}, tmp_path / NAME)
    before = (tmp_path / NAME).read_bytes()
    words = damage(tmp_path, how, random.Random(0))
    after = (tmp_path / NAME).read_bytes()
    assert words.startswith(NAME)
    if how == "with a flipped bit":
        assert len(after) == len(before)
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
    else:
        assert after == before[: len(after)] != before


def test_the_page_gets_the_table_and_keeps_its_prose(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n{BEGIN}\nold\n{END}\nAfter.\n")
    good = Case("SIGTERM", "ddp", ["a", "b"], 4, 12.4)
    bad = Case("SIGTERM", "ddp", ["c"], 2, 1.0, ["tensors differ"])
    assert rows([good, bad]) == [("SIGTERM", "ddp", "2", "3", "6", "1 of 2 NOT AS PROMISED", "13")]
    write_markdown(page, "python -m scripts.torture --seed 1", [good, bad])
    text = page.read_text()
    assert text.startswith(f"Before.\n{BEGIN}\n```sh\npython -m scripts.torture --seed 1 --markdown")
    assert "| SIGTERM | ddp | 2 | 3 | 6 | 1 of 2 NOT AS PROMISED | 13 |" in text
    assert text.endswith(f"2 cases, 6 runs, 1 not as promised.\n{END}\nAfter.\n")
    assert "old" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "only"),
    [("single", "killed,flipped,disk,NaN stops"), ("fsdp", "SIGTERM,truncated"), ("ddp", "hang in C")],
)
def test_a_short_torture(strategy: str, only: str) -> None:
    done = python(
        "-m", "scripts.torture", "--seed", "1", "--kills", "3", "--strategies", strategy, "--only", only,
        timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "none not as promised" in done.stdout
