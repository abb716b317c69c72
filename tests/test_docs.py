"""The commands that the documentation shows exist and are accepted."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from configs.compress import OptimizeConfig, SearchConfig
from configs.images import WriteShardsConfig
from configs.load import load, sweep_jobs
from configs.quantize import QuantizeConfig
from configs.schema import TrainConfig
from deploy.__main__ import _parser
from scripts.compare_chains import parse_chain
from tests.processes import ROOT, python

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "jetson.md"]
UNIT = ROOT / "deploy" / "edgelab-demo.service"
ON_THE_DEVICE = re.compile(r"(?:^|\s)python3? (?:-m deploy|(\S+\.pyz)) (.*)")


def commands() -> list[str]:
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL):
            found += [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


def test_the_readme_has_its_two_commands() -> None:
    assert {"make demo", "make test"} <= set(commands())


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_targets_exist(command: str) -> None:
    assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("command", [c for c in commands() if " -m train " in c])
def test_training_commands_compose(command: str) -> None:
    overrides = [word for word in shlex.split(command.split(" -m train ")[1]) if not word.startswith("--")]
    jobs = sweep_jobs("train", TrainConfig, [word for word in overrides if "=" in word])
    assert (len(jobs) > 1) == ("-m" in overrides)


@pytest.mark.parametrize("command", [c for c in commands() if "-m scripts.sweep " in c])
def test_sweeps_compose(command: str) -> None:
    words = shlex.split(command.split("-m scripts.sweep ")[1])
    assert len(sweep_jobs("train", TrainConfig, [word for word in words if "=" in word])) > 1


@pytest.mark.parametrize("command", [c for c in commands() if "quantize_and_benchmark " in c])
def test_compression_commands_compose(command: str) -> None:
    load("quantize_and_benchmark", QuantizeConfig, shlex.split(command.split("quantize_and_benchmark ")[1]))


@pytest.mark.parametrize("command", [c for c in commands() if " -m data.shards " in c])
def test_shard_commands_compose(command: str) -> None:
    load("shards", WriteShardsConfig, shlex.split(command.split(" -m data.shards ")[1]))


@pytest.mark.parametrize("command", [c for c in commands() if " -m optimize " in c])
def test_chains_compose(command: str) -> None:
    load("optimize", OptimizeConfig, shlex.split(command.split(" -m optimize ")[1]))


@pytest.mark.parametrize("command", [c for c in commands() if " -m optimize.search " in c])
def test_searches_compose(command: str) -> None:
    load("search", SearchConfig, shlex.split(command.split(" -m optimize.search ")[1]))


@pytest.mark.parametrize("command", [c for c in commands() if " -m scripts.compare_chains " in c])
def test_compared_chains_compose(command: str) -> None:
    chains = [parse_chain(w) for w in shlex.split(command) if ": " in w]
    assert chains
    for chain in chains:
        load("optimize", OptimizeConfig, ["checkpoint=c", *chain.overrides])


def on_the_device() -> list[str]:
    """What `python -m deploy` and a .pyz are asked to do, the unit's start too."""
    unit = [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    return [command for command in [*commands(), *unit] if ON_THE_DEVICE.search(command)]


@pytest.mark.parametrize("command", on_the_device())
def test_commands_of_the_device_are_accepted(command: str) -> None:
    found = ON_THE_DEVICE.search(command)
    assert found
    words = shlex.split(found[2])
    own = Path("bundle") if found[1] else None
    options = _parser(words[:1], own, Path(found[1]) if found[1] else None, None).parse_args(words)
    assert callable(options.command)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_one() -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


MODULES = sorted({m for c in commands() for m in re.findall(r"python3? -m ([\w.]+(?: bench| verify)?)", c)})


@pytest.mark.parametrize("module", MODULES)
def test_modules_run_and_help(module: str) -> None:
    done = python("-m", *module.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"])
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named = re.findall(r"`((?:configs|data|deploy|optimize|scripts|tests|train)/[\w/]*[\w.]*)`", text)
    assert [path for path in linked if not (document.parent / path).exists()] == []
    assert [path for path in named if "*" not in path and not (ROOT / path).exists()] == []
