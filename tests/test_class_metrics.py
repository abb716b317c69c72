"""What is said of each class: against scikit-learn, where it is undefined, and over two ranks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as reference

from configs.images import LoaderConfig
from data.calibration import image_batches
from data.index import Index
from data.plan import EvalPlan
from data.prepare import Splits
from data.synthetic import draw
from deploy.input_spec import InputSpec
from tests.processes import run_ranks, torchrun
from train.checkpoint import load_checkpoint, restore_model
from train.class_metrics import Scores, class_metrics, extremes, headline, precision_recall
from train.ddp import DDP
from train.metrics import EvalCounts, EvalScores
from train.ranks import Ranks
from train.strategy import Single

CPU = torch.device("cpu")


def drawn(num_classes: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [count, classes] that know something of the labels [count]; class 0 is the common one."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.6, count) - 1, num_classes - 1)
    # Rounded, so that images tie; the small part keeps the classes of one image apart.
    logits = rng.normal(size=(count, num_classes)).round(1) + 0.001 * np.arange(num_classes)
    logits[np.arange(count), labels] += 1
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


def counted(logits: torch.Tensor, labels: torch.Tensor) -> Any:
    counts, scores = EvalCounts(logits.shape[1], CPU), EvalScores()
    counts.add(logits, labels)
    scores.add(logits, labels)
    alone = Single(Ranks(0, 1, 0, 1, False), CPU, "fp32")
    return counts.result(scores.gather(alone))


def test_scikit_learn_says_the_same() -> None:
    logits, labels = drawn(4, 300)
    result = counted(logits, labels)
    truth, said, proba = labels.numpy(), logits.argmax(1).numpy(), logits.softmax(1).numpy()
    precision, recall, f1, support = reference.precision_recall_fscore_support(truth, said)
    classes = result.classes
    for ours, theirs in (
        (classes.precision, precision), (classes.recall, recall), (classes.f1, f1), (classes.support, support)
    ):  # fmt: skip
        np.testing.assert_allclose(ours, theirs)
    one_hot = np.eye(4)[truth]
    assert result.values == pytest.approx(
        {
            "loss": reference.log_loss(truth, proba),
            "top1": reference.accuracy_score(truth, said),
            "top5": 1.0,
            "macro_f1": reference.f1_score(truth, said, average="macro"),
            "weighted_f1": reference.f1_score(truth, said, average="weighted"),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, said),
            "auc_roc": reference.roc_auc_score(truth, proba, multi_class="ovr", average="macro"),
            "average_precision": reference.average_precision_score(one_hot, proba, average="macro"),
        },
        rel=1e-6,
    )


def test_what_is_undefined_is_nan_and_counts_nowhere() -> None:
    # Class 2 has no image but a prediction, class 3 has an image and no prediction.
    confusion = np.array([[3, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 3])
    scores = Scores(labels, np.full((7, 4), 0.25, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = class_metrics(confusion, scores)
    assert found.auc_roc is not None
    assert found.average_precision is not None
    np.testing.assert_array_equal(np.isnan(found.recall), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(found.f1), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(found.auc_roc), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(found.average_precision), [False, False, True, False])
    np.testing.assert_array_equal(np.isnan(found.precision), [False, False, False, True])
    assert found.f1[3] == 0
    assert found.means()["macro_f1"] == pytest.approx((0.75 + 1 + 0) / 3)
    assert found.means()["balanced_accuracy"] == pytest.approx((0.75 + 1 + 0) / 3)
    one_class = Scores(np.zeros(2, np.int64), np.eye(2, dtype=np.float32))
    only = class_metrics(np.array([[2, 0], [0, 0]]), one_class)
    assert np.isnan(only.means()["auc_roc"])


@pytest.mark.parametrize(
    ("counts", "leads"),
    [([10, 10], "top1"), ([30, 10], "top1"), ([31, 10], "macro_f1"), ([5, 0], "macro_f1")],
)
def test_accuracy_does_not_lead_beyond_three_to_one(counts: list[int], leads: str) -> None:
    assert headline(np.array(counts)) == leads


def test_a_thinned_curve_is_the_curve() -> None:
    logits, labels = drawn(2, 4000)
    scores = Scores(labels.numpy(), logits.softmax(1).numpy())
    recall, precision = precision_recall(scores, 1)
    assert len(recall) == len(precision) <= 200
    assert (recall[0], recall[-1]) == (0.0, 1.0)
    area = reference.auc(recall, precision)
    whole = reference.average_precision_score(scores.labels == 1, scores.probabilities[:, 1])
    assert area == pytest.approx(whole, abs=0.01)
    assert precision_recall(Scores(np.zeros(3, np.int64), scores.probabilities[:3]), 1) == ([], [])


def test_the_worst_classes_come_first() -> None:
    f1 = np.array([0.5, np.nan, 0.1, 0.9, 0.7])
    assert extremes(f1, 5) == [2, 0, 4, 3, 1]
    assert extremes(f1, 4, worst=1, best=2) == [2, 4, 3]


def gathered(count: int) -> Any:
    """Every image's logits as `EvalPlan` deals them to this rank, in batches of 4."""
    ranks = Ranks.from_environ()
    strategy = DDP(ranks, CPU, "fp32", 60.0) if ranks.launched else Single(ranks, CPU, "fp32")
    logits, labels = drawn(3, count)
    index = Index(("x",) * count, labels.numpy(), np.full((count, 2), 32), ("a", "b", "c"))
    spec = InputSpec(32, 32, (0.5,) * 3, (0.5,) * 3, index.class_names)
    plan = EvalPlan(index, spec, batch_size=4, rank=ranks.rank, world=ranks.world)
    scores = EvalScores()
    for step in range(len(plan)):
        batch = plan.at(step)
        scores.add(logits[torch.from_numpy(batch.rows)], torch.from_numpy(batch.labels))
    result = scores.gather(strategy)
    strategy.close()
    return None if result is None else (result.labels, result.probabilities)


def test_the_ranks_scores_come_in_the_order_of_the_index() -> None:
    logits, labels = drawn(3, 13)
    first, second = run_ranks(gathered, 2, 13)
    assert second is None
    for got in (first, gathered(13)):
        np.testing.assert_array_equal(got[0], labels.numpy())
        np.testing.assert_array_equal(got[1], logits.softmax(1).numpy())


@pytest.fixture(scope="module")
def imbalanced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two ranks on three classes of 80, 24 and 8 training images."""
    folder = tmp_path_factory.mktemp("imbalanced")
    row = 0
    for split, counts in (("train", (80, 24, 8)), ("val", (20, 6, 3))):
        for label, count in enumerate(counts):
            (folder / split / f"kind_{label}").mkdir(parents=True)
            for _ in range(count):
                image = Image.fromarray(draw(row, label, 3, 40, 48))
                image.save(folder / split / f"kind_{label}" / f"{row:04d}.png")
                row += 1
    done = torchrun(
        2, "-m", "train", "data=image_folder", f"data.root={folder}", f"data.cache_dir={folder / 'cache'}",
        "data.input.size=32", "data.input.resize=36", "model=resnet18", "batch_size=16", "epochs=4",
        "optim.lr=0.02", "optim.warmup_epochs=1", "precision=fp32", "device=cpu", f"run_dir={folder / 'run'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "run" / "stderr.txt").write_text(done.stderr)
    return folder / "run"


def test_the_scores_of_two_ranks_are_those_of_one_process(imbalanced: Path) -> None:
    saved, splits = load_checkpoint(imbalanced / "checkpoint.pt"), Splits.load(imbalanced / "data")
    loader = LoaderConfig("torch", threads=1, prefetch=2)
    with torch.inference_mode():
        images = np.concatenate(list(image_batches(splits.val, saved.input_spec, loader)))
        logits = restore_model(saved)(torch.from_numpy(images))
    alone = counted(logits, torch.from_numpy(splits.val.labels))
    with np.load(imbalanced / "predictions.npz", allow_pickle=False) as kept:
        assert tuple(kept["paths"]) == splits.val.paths
        assert tuple(kept["class_names"]) == ("kind_0", "kind_1", "kind_2")
        np.testing.assert_array_equal(kept["labels"], splits.val.labels)
        assert kept["probabilities"].dtype == np.float32
        np.testing.assert_allclose(kept["probabilities"], alone.scores.probabilities, atol=2e-3)
    assert saved.metrics == pytest.approx(alone.values, abs=2e-3)


def test_macro_f1_leads_where_accuracy_would_flatter(imbalanced: Path) -> None:
    classes = json.loads((imbalanced / "classes.json").read_text())
    assert classes["headline"] == "macro_f1"
    assert [row["train"] for row in classes["classes"]] == [80, 24, 8]
    assert np.array(classes["confusion"]).sum(1).tolist() == [20, 6, 3]
    evals = [
        line
        for line in map(json.loads, (imbalanced / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "eval"
    ]
    assert classes["values"] == {name: evals[-1][name] for name in classes["values"]}
    best = load_checkpoint(imbalanced / "best.pt")
    assert best.progress.best_score == max(line["macro_f1"] for line in evals) == best.metrics["macro_f1"]
    told = (imbalanced / "stderr.txt").read_text()
    assert "macro F1 leads: the training classes hold 8 to 80 images" in told
    assert f"epoch 4 of 4  macro F1 {100 * evals[-1]['macro_f1']:.2f} %  top-1" in told
