"""Samples in an .npz file: what is taken, and every mistake named at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import LabError
from deploy.runner import TensorSpec
from deploy.tensors import Tensors, read_tensors

INPUTS = (TensorSpec("ids", "int64", (None, None)), TensorSpec("x", "float32", (1, 2, 3)))


def arrays(count: int = 4, **changes: Any) -> dict[str, Any]:
    plain = {"ids": np.zeros((count, 5), np.int64), "x": np.ones((count, 2, 3), np.float32)}
    return plain | {"labels": np.arange(count)} | changes


def saved(folder: Path, **content: Any) -> Path:
    np.savez(folder / "samples.npz", **content)
    return folder / "samples.npz"


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    found = read_tensors(saved(tmp_path, **arrays()), INPUTS, num_classes=4)
    assert list(found.arrays) == ["ids", "x"]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert len(found) == 4
    parts = list(found.take(np.array([3, 1, 0])).batches(2))
    assert [len(part) for part in parts] == [2, 1]
    assert [part.labels.tolist() for part in parts if part.labels is not None] == [[3, 1], [0]]


def test_labels_are_an_input_where_the_model_has_one_of_that_name(tmp_path: Path) -> None:
    inputs = (TensorSpec("labels", "float32", (None, 2)),)
    found = read_tensors(saved(tmp_path, labels=np.ones((3, 2), np.float32)), inputs)
    assert found.labels is None
    assert found.arrays["labels"].shape == (3, 2)


HOLES = np.ones((4, 2, 3), np.float32)
HOLES[2, 0, 0] = np.inf


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (arrays(y=np.zeros(4)), [r"\['y'\] are no inputs of the model, which takes \['ids', 'x'\]"]),
        ({"labels": np.arange(4)}, [r"no array for the inputs \['ids', 'x'\]"]),
        (
            arrays(ids=np.zeros((4, 5), np.int32), x=np.ones((4, 2, 4), np.float32)),
            [
                r"'ids' is int32 4 x 5, must be int64 N x \?: save array.astype\(numpy.int64\)",
                r"'x' is float32 4 x 2 x 4, must be float32 N x 2 x 3: save samples of that shape",
            ],
        ),
        (arrays(x=np.ones((2, 3), np.float32)), [r"'x' is float32 2 x 3, must be float32 N x 2 x 3"]),
        (arrays(x=HOLES), [r"'x' holds NaN or infinity in 1 of 4 samples, the first is 2"]),
        (arrays(x=np.ones((3, 2, 3), np.float32)), [r"different numbers of samples: \{'ids': 4, 'x': 3\}"]),
        (arrays(labels=np.arange(3)), [r"'labels' is int64 3, must be 4 integers"]),
        (arrays(labels=np.arange(4) * 0.5), [r"'labels' is float64 4, must be 4 integers"]),
        (
            arrays(labels=np.array([0, 1, 2, 4])),
            [r"'labels' is from 0 to 4, must be class indexes from 0 to 3"],
        ),
        (arrays(labels=np.array([0, 1, 2, -1])), [r"'labels' is from -1 to 2, must be"]),
        (arrays(0), [r"'ids' is 0 x 5: holds no sample", r"'x' is 0 x 2 x 3: holds no sample"]),
    ],
)
def test_every_mistake_is_named(tmp_path: Path, content: dict[str, Any], messages: list[str]) -> None:
    for message in messages:
        with pytest.raises(LabError, match=message):
            read_tensors(saved(tmp_path, **content), INPUTS, num_classes=4)


class Bomb:
    def __reduce__(self) -> Any:
        return (Path("went_off").touch, ())


def test_objects_are_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path, **arrays(x=np.array([Bomb()] * 4, object)))
    with pytest.raises(LabError, match="objects would run code when they are opened"):
        read_tensors(path, INPUTS)
    assert not (tmp_path / "went_off").exists()


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"nowhere.npz: No such file"):
        read_tensors(tmp_path / "nowhere.npz", INPUTS)
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(LabError, match=r"text.npz: cannot be read"):
        read_tensors(tmp_path / "text.npz", INPUTS)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(LabError, match=r"one.npy: one array without a name"):
        read_tensors(tmp_path / "one.npy", INPUTS)
    whole = saved(tmp_path, **arrays()).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LabError, match=r"half.npz: cannot be read"):
        read_tensors(tmp_path / "half.npz", INPUTS)


def test_the_length_is_that_of_any_input() -> None:
    assert len(Tensors({"a": np.zeros((3, 1))})) == 3
