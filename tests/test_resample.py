"""Evening out the classes on features, and the last layer that is fitted to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from configs.load import load
from configs.schema import TrainConfig
from data.features import Features
from data.prepare import input_spec, prepare
from data.resample import METHODS, main, resample
from scripts.features import main as features_command
from scripts.train_head import main as train_head_command
from train.checkpoint import Checkpoint, Progress, load_checkpoint, restore_model, save_checkpoint
from train.head import fit_linear, last_linear
from train.model import build_model

NAMES = ("common", "some", "rare")


def clouds(counts: tuple[int, ...], seed: int = 0) -> Features:
    """Three overlapping clouds in 4 dimensions."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    values = rng.normal(size=(len(labels), 4)).astype(np.float32)
    values[np.arange(len(labels)), labels] += 1.5
    return Features(values, labels, NAMES, tuple(map(str, labels)))


@pytest.mark.parametrize("method", METHODS)
def test_the_classes_come_out_even(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clouds((60, 20, 8)).save(tmp_path / "features.npz")
    out = tmp_path / "out.npz"
    assert main([str(tmp_path / "features.npz"), "--method", method, "--out", str(out)]) == 0
    told = capsys.readouterr().out.splitlines()
    made, again = Features.load(out), resample(clouds((60, 20, 8)), method, 0, 5)
    assert [line.split() for line in told[1:]] == [
        [name, str(old), str(new)] for name, old, new in zip(NAMES, (60, 20, 8), made.counts(), strict=True)
    ]
    np.testing.assert_array_equal(made.values, again.values)
    assert made.values.dtype == np.float32
    if method == "adasyn":  # it aims at even and rounds for each row
        assert np.ptp(made.counts()) < 10
    else:
        assert made.counts().tolist() == [8 if method == "random_under" else 60] * 3


def test_too_few_of_a_class_are_named_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "features.npz", tmp_path / "out.npz"
    clouds((30, 20, 4)).save(path)
    command = [str(path), "--method", "smote", "--out", str(out)]
    assert main(command) == 2
    assert (
        "needs 6 images of a class, and fewer are in rare (4): use --neighbours 3" in capsys.readouterr().err
    )
    assert not out.exists()
    assert main([*command, "--neighbours", "3"]) == 0
    (tmp_path / "x.npz").write_text("no table")
    assert main([str(tmp_path / "x.npz"), *command[1:]]) == 2
    assert "holds no features" in capsys.readouterr().err


def test_the_fitted_layer_is_that_of_scikit_learn() -> None:
    features = clouds((60, 20, 8))
    weight, bias = fit_linear(features.values, features.labels, 3, weight_decay=0.01)
    assert torch.equal(weight, fit_linear(features.values, features.labels, 3, weight_decay=0.01)[0])
    plain = features.values
    x = (plain - plain.mean(0)) / plain.std(0)
    reference = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=2000).fit(x, features.labels)
    ours = torch.from_numpy(plain) @ weight.T + bias
    np.testing.assert_allclose(ours.softmax(1).numpy(), reference.predict_proba(x), atol=1e-3)


def test_from_a_checkpoint_to_a_new_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(
        "train",
        TrainConfig,
        ["data=synthetic", "data.num_classes=3", "data.num_train=36", "data.num_val=12", "data.width=48",
         "data.height=40", "data.input.size=32", "data.input.resize=36", f"data.root={tmp_path / 'drawn'}",
         f"data.cache_dir={tmp_path / 'cache'}", "model=resnet18", "loader=torch", "loader.threads=1"],
    )  # fmt: skip
    splits = prepare(config.data, tmp_path / "data")
    splits.save(tmp_path / "data")
    spec = input_spec(config.data, splits.train.class_names)
    torch.manual_seed(0)
    weights = build_model(config.model, 3).state_dict()
    saved = Checkpoint(
        config=config,
        input_spec=spec,
        structure=[],
        scaler={},
        loader={"position": 0, "num_steps": 1},
        progress=Progress(),
        metrics={},
        model=weights,
        ema=None,
        optimizer={},
    )
    save_checkpoint(tmp_path / "checkpoint.pt", saved)

    given = f"checkpoint={tmp_path / 'checkpoint.pt'}"
    assert features_command([given]) == 0
    found = Features.load(tmp_path / "features.npz")
    assert found.values.shape == (36, 512)
    assert found.paths == splits.train.paths
    np.testing.assert_array_equal(found.labels, splits.train.labels)
    assert train_head_command([str(tmp_path / "features.npz"), given]) == 0
    told = capsys.readouterr().out
    fitted = load_checkpoint(tmp_path / "head.pt")
    assert f"{fitted.metrics['macro_f1']:.2%}" in told
    model, old = restore_model(fitted), restore_model(saved)
    # The new layer knows the images that it was fitted to, and nothing else of the network has changed.
    logits = last_linear(model)(torch.from_numpy(found.values))
    assert float((logits.argmax(1).numpy() == found.labels).mean()) > 0.8
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, old.state_dict()[k])}
    assert changed == {"fc.1.weight", "fc.1.bias"}

    other = clouds((9, 9, 9))
    other.save(tmp_path / "other.npz")
    assert train_head_command([str(tmp_path / "other.npz"), given]) == 2
    assert "has 4 features of 3 classes" in capsys.readouterr().err
    assert features_command(["checkpoint=/nowhere/c.pt"]) == 2
