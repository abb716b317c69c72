"""Every shipped config is valid, and every mistake is refused with its key and a remedy, all in one error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

import configs.load
from configs.compress import OptimizeConfig
from configs.images import ImageFolderConfig
from configs.load import CONFIG_DIR, as_dict, from_dict, load, run_command, sweep_jobs, to_yaml
from configs.quantize import QuantizeConfig
from configs.schema import SgdConfig, TrainConfig
from deploy.errors import LabError

RECIPES = sorted(path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    (path.parent.name, path.stem)
    for path in CONFIG_DIR.glob("*/*.yaml")
    if path.parent.name not in ("experiment", "recipe", "target") and path.stem != "base"
)


def train_config(*overrides: str) -> TrainConfig:
    return load("train", TrainConfig, overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(LabError) as caught:
        train_config(*overrides)
    return str(caught.value)


def train_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train", *arguments],
        cwd=CONFIG_DIR.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_valid(experiment: str) -> None:
    config = train_config(f"experiment={experiment}", "data.root=images")
    assert config.name == experiment


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_valid(recipe: str) -> None:
    plain = load("optimize", OptimizeConfig, ["checkpoint=c"])
    assert load("optimize", OptimizeConfig, ["checkpoint=c", f"recipe={recipe}"]) != plain


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_valid_and_named_as_its_file(group: str, option: str) -> None:
    config = train_config(f"{group}={option}", "data.root=images")
    assert getattr(config, group).name == option


def test_every_section_is_a_group_of_options() -> None:
    sections = {field.name for field in fields(TrainConfig)} & {group for group, _ in OPTIONS}
    assert sections == {"data", "loader", "model", "optim", "sampling", "strategy"}


def test_the_benchmark_config_is_valid() -> None:
    assert load("quantize_and_benchmark", QuantizeConfig, ["checkpoint=c"]).checkpoint == "c"
    with pytest.raises(LabError, match="checkpoint is required: give checkpoint="):
        load("quantize_and_benchmark", QuantizeConfig)


def test_the_chains_config_is_valid() -> None:
    assert load("optimize", OptimizeConfig, ["checkpoint=c"]).stages == ["prune", "finetune"]
    with pytest.raises(LabError, match="checkpoint is required: give checkpoint="):
        load("optimize", OptimizeConfig)


@pytest.mark.parametrize(
    ("override", "key", "remedy"),
    [
        ("optim.lrr=1", "optim.lrr", "did you mean lr?"),
        ("+optim.lrr=1", "optim.lrr", "did you mean lr?"),
        ("++epohcs=4", "epohcs", "did you mean epochs?"),
        ("data.input.siez=64", "data.input.siez", "did you mean size?"),
        ("loader.workers=2", "loader.workers", "choose from name, threads, prefetch"),
        ("epochs=many", "epochs", "valid integer (got 'many')"),
        ("epochs=2.5", "epochs", "valid integer (got 2.5)"),
        ("seed=-1", "seed", "greater than or equal to 0"),
        (f"seed={2**63}", "seed", "less than"),
        ("optim.lr=inf", "optim.lr", "finite"),
        ("strategy.name=dpp", "strategy.name", "'pipeline' or 'horovod'"),
        ("strategy=dpp", "strategy", "auto ddp fsdp horovod pipeline single"),
        ("optim=lamb", "optim", "adamw sgd"),
        ("optim=3", "optim=3", "must be a string"),
        ("data.name=imagnet", "data", "'image_folder'"),
        ("experiment=nope", "experiment", "imagenet_resnet50"),
        ("data.input.size=200", "data.input.size", "multiple of 32 (got 200)"),
        ("data.input.mean=[0.5]", "data.input.mean", "at least 3"),
        ("data=image_folder", "data.root", "give data.root="),
        ("data.root=${oc.env:EDGELAB_UNSET}", "data.root", "'EDGELAB_UNSET' not found"),
        ("~optim.lr", "optim.lr", "missing"),
        ("epochs", "epochs", "missing EQUAL"),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_a_remedy(override: str, key: str, remedy: str) -> None:
    message = refusal(override)
    assert message.startswith("the config has a mistake:")
    assert f"- {key}" in message
    assert remedy in message
    # Hydra's advice to force a key in with a plus sign would only hide the mistake from it.
    assert "append to your config" not in message


def test_the_optimisers_do_not_share_their_keys() -> None:
    assert "optim.momentum: unknown key" in refusal("optim=adamw", "optim.momentum=0.9")
    assert train_config("optim=sgd", "optim.momentum=0.8").optim == SgdConfig(
        lr=0.05,
        weight_decay=0.0005,
        warmup_epochs=1.0,
        final_lr=0.0,
        cycles=1,
        l1=0.0,
        name="sgd",
        momentum=0.8,
        nesterov=True,
    )


def test_a_typo_inside_an_experiment_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "configs"
    shutil.copytree(CONFIG_DIR, copy, ignore=shutil.ignore_patterns("*.py*"))
    text = "# @package _global_\nname: mine\nepohcs: 4\noptim: {lrr: 1}\nmodel: {dropout: lots}\n"
    (copy / "experiment" / "mine.yaml").write_text(text)
    monkeypatch.setattr(configs.load, "CONFIG_DIR", copy)
    message = refusal("experiment=mine")
    assert "epohcs: unknown key; did you mean epochs?" in message
    assert "optim.lrr: unknown key; did you mean lr?" in message
    assert "model.dropout: Input should be a valid number (got 'lots')" in message


def test_one_error_names_every_mistake() -> None:
    overrides = ("data=image_folder", "optim.lrr=1", "epochs=many", "optim=lamb", "+epohcs=2", "batch_size=0")
    message = refusal(*overrides)
    assert message.startswith("the config has 6 mistakes:")
    for key in ("data.root", "optim.lrr", "epochs: ", "optim=lamb", "epohcs", "batch_size"):
        assert message.count(f"  - {key}") == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch_size=64", "accumulate=3"], ["batch_size 64 must be a multiple of accumulate 3"]),
        (["epochs=3", "optim.warmup_epochs=3"], ["optim.warmup_epochs 3 must be less than epochs 3"]),
        (
            ["model.weights=imagenet", "model.stem=small"],
            ["model.weights=imagenet needs model.stem=imagenet"],
        ),
        (["transfer.frozen_epochs=1"], ["freeze what model.weights gives"]),
        (["data.input.size=64", "data.input.resize=32"], ["data.input: resize 32 must be at least size 64"]),
        (
            ["data=image_folder", "data.root=r", "data.val_split=train"],
            ["data: train_split and val_split are"],
        ),
        (["optim.momentum=0"], ["optim: nesterov=true needs momentum above 0"]),
        (["accumulate=5", "epochs=1"], ["multiple of accumulate 5", "less than epochs 1"]),
    ],
)
def test_sections_must_agree(overrides: list[str], expected: list[str]) -> None:
    message = refusal(*overrides)
    assert [text for text in expected if text not in message] == []


@pytest.mark.parametrize("overrides", [[], ["data=cifar10", "optim=adamw"], ["experiment=demo"]])
def test_a_saved_config_reads_back_the_same(overrides: list[str]) -> None:
    config = train_config(*overrides)
    assert from_dict(as_dict(config), TrainConfig) == config
    assert f"batch_size: {config.batch_size}\n" in to_yaml(config)


def test_a_saved_config_of_another_shape_is_refused() -> None:
    raw = as_dict(train_config())
    raw["optim"]["lrr"] = raw["optim"].pop("lr")
    with pytest.raises(LabError) as caught:
        from_dict(raw, TrainConfig)
    assert "optim.lr: missing" in str(caught.value)
    assert "optim.lrr: unknown key" in str(caught.value)


def test_imagenet_resnet50_is_the_recipe_of_deeplearningexamples() -> None:
    config = train_config("experiment=imagenet_resnet50", "data.root=images")
    assert config.optim == SgdConfig(
        lr=0.256 * 2048 / 256,
        weight_decay=1 / 32768,
        warmup_epochs=8.0,
        final_lr=0.0,
        cycles=1,
        l1=0.0,
        name="sgd",
        momentum=0.875,
        nesterov=False,
    )
    recipe = (config.model.name, config.epochs, config.batch_size, config.label_smoothing, config.mixup)
    assert recipe == ("resnet50", 90, 2048, 0.1, 0.0)
    assert isinstance(config.data, ImageFolderConfig)
    assert (config.data.input.size, config.data.input.resize) == (224, 256)


def test_a_mistake_on_the_command_line_is_a_message_and_exit_code_2() -> None:
    done = train_command("optim.lrr=1", RANK="0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the config has a mistake:")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_only_rank_0_reports_a_mistake() -> None:
    done = train_command("optim.lrr=1", RANK="1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_cfg_job_prints_what_would_run() -> None:
    done = train_command("--cfg", "job", "experiment=imagenet_resnet50")
    assert (done.returncode, done.stderr) == (0, "")
    assert "epochs: 90" in done.stdout


def test_a_mistake_beside_cfg_job_is_no_traceback() -> None:
    done = train_command("--cfg", "job", "optim.lrr=1")
    assert done.returncode != 0
    assert "lrr" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: TrainConfig, overrides: Sequence[str]) -> None:
        raise RuntimeError(f"defect in {config.name}")

    monkeypatch.setattr(sys, "argv", ["train", "name=mine"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(RuntimeError, match="defect in mine"):
        run_command("train", TrainConfig, broken)


def test_a_path_with_an_equals_sign_is_a_path() -> None:
    path = "runs/seed=0/checkpoint.pt"
    assert load("optimize", OptimizeConfig, [f"checkpoint={path}"]).checkpoint == path
    assert load("optimize", OptimizeConfig, [f'checkpoint="{path}"']).checkpoint == path
    jobs = sweep_jobs("train", TrainConfig, ["seed=0,1", f"model.weights={path}"])
    assert [job.config.model.weights for job in jobs] == [path, path]
    with pytest.raises(LabError, match="stands in quotes of its own"):
        load("train", TrainConfig, [f"distill.teachers=[{path}]"])
    with pytest.raises(LabError, match="stands in quotes of its own"):
        sweep_jobs("train", TrainConfig, [f"distill.teachers=[],[{path}]"])
    taught = load("train", TrainConfig, [f'distill.teachers=["{path}"]'])
    assert taught.distill.teachers == [path]
