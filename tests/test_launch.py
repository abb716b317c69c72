"""Runs as child processes: what starts them, sweeps that go on, folds that add up."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.load import load, override, sweep_jobs
from configs.schema import TrainConfig
from data.index import Index
from data.prepare import Splits
from deploy.errors import LabError
from scripts.sweep import places_for, visible_gpus
from tests.processes import ROOT, environment, python
from train.cv import read_out_of_fold, summarize
from train.launch import Child, Place, run_children, train_command
from train.result import Result, keep_result, read_result
from train.sweep import job_command, open_sweep_dir, over_seeds, report

TINY = [
    "data=synthetic", "data.num_classes=2", "data.num_train=12", "data.num_val=4", "data.width=40",
    "data.height=40", "data.input.size=32", "data.input.resize=32", "model=mobilenet_v2", "batch_size=4",
    "epochs=1", "optim.lr=0.001", "optim.warmup_epochs=0", "device=cpu", "precision=fp32", "loader=torch",
    "loader.threads=1",
]  # fmt: skip


def jobs_of(*overrides: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(job.name, job.overrides) for job in sweep_jobs("train", TrainConfig, overrides)]


def test_a_sweep_is_the_product_of_its_lists() -> None:
    jobs = sweep_jobs("train", TrainConfig, ["epochs=5", "optim.lr=0.1,0.2", "model=resnet18,resnet34"])
    assert [job.name for job in jobs] == [
        f"optim.lr={lr},model={model}" for lr in ("0.1", "0.2") for model in ("resnet18", "resnet34")
    ]
    assert [(job.config.optim.lr, job.config.model.name) for job in jobs][2] == (0.2, "resnet18")
    assert jobs[0].overrides == ("epochs=5", "optim.lr=0.1", "model=resnet18")


def test_quotes_and_hydras_own_settings_are_hydras() -> None:
    # A job's name has only what varies, and two names never fall together.
    jobs = jobs_of("data.root='a,b',c/d", "data=image_folder", "hydra.sweep.subdir=x", "name='it,s'")
    assert [overrides for _, overrides in jobs] == [
        ("data.root='a,b'", "data=image_folder", "name='it,s'"),
        ("data.root=c/d", "data=image_folder", "name='it,s'"),
    ]
    names = [name for name, _ in jobs]
    assert len(set(names)) == 2
    assert not any(set("/' ") & set(name) for name in names)


@pytest.mark.parametrize("value", ["runs/a", "a b", "it's", 'say "x"', "back\\", 'both\\"', "x=1,y=2"])
def test_an_override_of_ours_reads_back(value: str) -> None:
    assert load("train", TrainConfig, [override("run_dir", value)]).run_dir == value


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["optim.lr=0.1,0.1"], "more than once"),
        (["optim.lr=0.1,0.2", "optim.lrr=1"], "did you mean lr"),
        (["optim.lr=interval(0,1)"], "not a list of values"),
        (["hydra/sweeper=x", "epochs=3,4"], "hydra/sweeper"),
        (["cv.folds=1"], "folds=1 holds nothing out"),
        (["cv.folds=3", "cv.fold=3"], "fold 3 must be below folds 3"),
    ],
)
def test_a_mistake_is_told_before_the_first_job(overrides: list[str], told: str) -> None:
    with pytest.raises(LabError, match=told):
        sweep_jobs("train", TrainConfig, overrides)


def test_the_command_can_be_repeated_by_hand() -> None:
    torchrun = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "train"]
    for overrides, command in (
        (["epochs=3"], ["python", "-m", "train"]),
        (["processes=2"], torchrun),
        (["processes=2", "cv.folds=3"], ["python", "-m", "train"]),
        (["processes=2", "cv.folds=3", "cv.fold=0"], torchrun),
    ):
        assert train_command(load("train", TrainConfig, overrides), overrides) == [*command, *overrides]
    (job,) = sweep_jobs("train", TrainConfig, ["epochs=2", "run_dir=runs/s", "resume=false"])
    assert job_command(Path("runs/s"), job)[3:] == ["epochs=2", "run_dir=runs/s/job", "resume=true"]


def test_children_share_places_and_lose_no_other(tmp_path: Path) -> None:
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ.get('RANK'), flush=True); "
    ends = ["pass", "raise SystemExit(3)", "os.kill(os.getpid(), 9)", "pass"]
    children = [Child(["python", "-c", program + end], tmp_path / f"{i}.log") for i, end in enumerate(ends)]
    os.environ["RANK"] = "7"
    try:
        heard: list[tuple[int, int]] = []
        codes = run_children(
            children, [Place("0"), Place("1")], lambda index, code: heard.append((index, code))
        )
    finally:
        del os.environ["RANK"]
    assert codes == [0, 3, -9, 0]
    assert sorted(heard) == list(enumerate(codes))
    seen = {child.log.read_text().splitlines()[-1] for child in children if child.log}
    assert seen == {"0 None", "1 None"}


PARENT = """
import sys
from pathlib import Path
from train.launch import Child, run_children
child = "import signal, sys; signal.signal(15, lambda *a: exit(0)); print('up', flush=True); signal.pause()"
run_children([Child(["python", "-c", child], Path(sys.argv[1])), Child(["python", "-c", "print('late')"])])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_parents_end_is_its_childrens(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(log)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    )
    while not (log.exists() and "\nup" in log.read_text()):
        assert parent.poll() is None
    (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    ends = os.pidfd_open(int(child))
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=30)
    assert b"late" not in out
    assert parent.returncode == (143 if number == signal.SIGTERM else -9)
    assert select.select([ends], [], [], 30)[0], "the child outlives its parent"
    os.close(ends)


def test_a_result_counts_for_its_own_config(tmp_path: Path) -> None:
    config = load("train", TrainConfig, ["run_dir=a"])
    assert read_result(tmp_path, config) is None
    keep_result(tmp_path, Result(config, {"top1": 0.5}))
    same = read_result(tmp_path, load("train", TrainConfig, ["run_dir=b", "resume=true", "processes=2"]))
    assert same is not None
    assert same.metrics == {"top1": 0.5}
    assert read_result(tmp_path, load("train", TrainConfig, ["seed=1"])) is None


def test_the_report_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = sweep_jobs("train", TrainConfig, ["optim.lr=0.1,0.2", f"run_dir={tmp_path}"])
    (tmp_path / jobs[0].name).mkdir()
    keep_result(tmp_path / jobs[0].name, Result(jobs[0].config, {"top1": 0.25}))
    with pytest.raises(SystemExit) as ended:
        report(tmp_path, jobs)
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "1 of 2 runs have no result: optim.lr=0.2" in told.err
    assert "0.2500" in told.out
    rows = json.loads((tmp_path / "sweep.json").read_text())
    assert [(row["name"], row["metrics"]) for row in rows] == [
        ("optim.lr=0.1", {"top1": 0.25}),
        ("optim.lr=0.2", None),
    ]
    with pytest.raises(LabError, match="go on with resume=true"):
        open_sweep_dir(jobs)


@pytest.mark.parametrize("arguments", [("-m", "epochs=3,4"), ("cv.folds=3",)])
def test_several_runs_under_a_launcher_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    done = python("-m", "train", *arguments, f"run_dir={tmp_path / 'run'}", env=launcher)
    assert done.returncode == 2
    assert "processes=N" in done.stderr
    assert not (tmp_path / "run").exists()


def test_places_have_their_own_gpus_and_cores() -> None:
    assert visible_gpus("4,GPU-5", 2) == ["4", "GPU-5"]
    assert visible_gpus(None, 2) == ["0", "1"]
    assert places_for(["0", "1", "2", "3"], 2, None) == [Place("0,1"), Place("2,3")]
    with pytest.raises(LabError, match="fewer --slots"):
        places_for(["0", "1", "2"], 2, 2)
    cores = [place.cores for place in places_for([], 1, 2)]
    assert set().union(*(c or set() for c in cores)) == os.sched_getaffinity(0)
    assert not set.intersection(*(set(c or ()) for c in cores))


def test_folds_are_summed_up_with_n_minus_1() -> None:
    summary = summarize({"a": {"top1": 0.5, "extra": 1.0}, "b": {"top1": 0.7}, "c": {"top1": 0.9}})
    assert summary["top1"]["mean"] == pytest.approx(0.7)
    assert summary["top1"]["std"] == pytest.approx(0.2)
    assert summary["top1"]["folds"] == [0.5, 0.7, 0.9]
    assert "extra" not in summary


def leave_predictions(run_dir: Path, paths: list[str], labels: list[int], predicted: list[int]) -> None:
    index = Index(tuple(paths), np.array(labels), np.ones((len(paths), 2), np.int64), ("cat", "dog", "eel"))
    Splits(index, index).save(run_dir / "data")
    probabilities = np.eye(3, dtype=np.float32)[predicted]
    np.savez(run_dir / "predictions.npz", paths=np.array(paths), labels=labels, probabilities=probabilities)


def test_the_out_of_fold_confusion_counts_every_image_once(tmp_path: Path) -> None:
    runs = [tmp_path / "fold-0", tmp_path / "fold-1"]
    leave_predictions(runs[0], ["a", "b"], [0, 1], [0, 0])
    assert read_out_of_fold(runs) is None
    leave_predictions(runs[1], ["c", "d"], [1, 1], [1, 1])
    found = read_out_of_fold(runs)
    assert found is not None
    assert found["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert (found["num_images"], found["top1"]) == (4, 0.75)
    assert found["classes"]["cat"] == {
        "precision": 0.5,
        "recall": 1.0,
        "f1": pytest.approx(2 / 3),
        "support": 1,
    }
    assert found["classes"]["eel"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    leave_predictions(runs[1], ["b", "d"], [1, 1], [1, 1])
    with pytest.raises(LabError, match="more than one fold"):
        read_out_of_fold(runs)


@pytest.mark.slow
def test_a_sweep_of_torchruns_goes_on_after_a_failure(tmp_path: Path) -> None:
    command = [
        "-m", "train", "-m", *TINY, f"data.root={tmp_path}/images", f"data.cache_dir={tmp_path}/cache",
        "processes=2", f"run_dir={tmp_path}/sweep",
    ]  # fmt: skip
    # Three images do not divide among two processes.
    first = python(*command, "batch_size=4,3")
    assert first.returncode == 1, first.stderr
    assert "1 of 2 runs have no result: batch_size=3" in first.stderr
    again = python(*command, "batch_size=4,6", "resume=true")
    assert again.returncode == 0, again.stderr
    assert "batch_size=4: done already" in again.stderr
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert all(0 <= row["metrics"]["top1"] <= 1 for row in rows)
    logs = tmp_path / "sweep" / "batch_size=6" / "logs"
    assert sorted(file.name for file in logs.iterdir()) == ["rank0.log", "rank1.log"]


@pytest.mark.slow
def test_cross_validation_validates_every_image_once_and_goes_on(tmp_path: Path) -> None:
    command = [
        "-m", "train", *TINY, f"data.root={tmp_path}/images", f"data.cache_dir={tmp_path}/cache",
        "cv.folds=2", f"run_dir={tmp_path}/cv",
    ]  # fmt: skip
    done = python(*command)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "cv" / "cv.json").read_text())
    assert found["metrics"]["top1"]["mean"] == pytest.approx(np.mean(found["metrics"]["top1"]["folds"]))
    held_out = [Splits.load(tmp_path / "cv" / f"fold-{fold}" / "data").val.paths for fold in range(2)]
    assert [len(paths) for paths in held_out] == [8, 8]
    assert len({*held_out[0], *held_out[1]}) == 16
    (tmp_path / "cv" / "fold-1" / "result.json").unlink()  # as if killed before the end
    assert python(*command).returncode == 2
    again = python(*command, "resume=true")
    assert again.returncode == 0, again.stderr
    assert "fold-0: done already" in again.stderr
    assert json.loads((tmp_path / "cv" / "cv.json").read_text()) == found


def test_runs_of_several_seeds_are_averaged() -> None:
    jobs = sweep_jobs("train", TrainConfig, ["seed=0,1", "epochs=5", "optim.lr=0.1,0.2"])
    results = {job.name: {"top1": 0.5 + 0.1 * job.config.seed, "loss": 1.0} for job in jobs}
    means = over_seeds(jobs, results)
    assert list(means) == ["optim.lr=0.1", "optim.lr=0.2"]
    assert means["optim.lr=0.1"] == {"top1": "0.5500 \u00b1 0.0707", "loss": "1.0000 \u00b1 0.0000"}
    del results[jobs[0].name]
    assert list(over_seeds(jobs, results)) == ["optim.lr=0.2"]
    alone = sweep_jobs("train", TrainConfig, ["epochs=5", "optim.lr=0.1,0.2"])
    assert over_seeds(alone, {job.name: {"top1": 0.5} for job in alone}) == {}
    assert list(over_seeds(jobs[::2], {job.name: {"top1": 0.5} for job in jobs})) == ["every seed"]
