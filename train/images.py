"""The images of the run that made a checkpoint, for whatever is done with the checkpoint later."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from configs.images import DataConfig
from data.prepare import Splits, input_spec, prepare, resplit
from deploy.errors import LabError
from train.checkpoint import Facts


def images_of(
    facts: Facts, folder: Path, root: str | None, say: Callable[[str], None], option: str = "data_root=..."
) -> tuple[DataConfig, Splits]:
    """The data config with `root` in place of its own where it is given, and the splits, those of the run's
    fold where it was one. `folder` keeps what is found out about them.

    Raises LabError where the images are gone or have other classes; `option` is what gives another root.
    """
    config = facts.config
    data = replace(config.data, root=root) if root else config.data
    splits = prepare(data, folder, say)
    cv = config.cv
    if cv.fold is not None:  # measured on what the run has not trained on
        splits = resplit(splits, cv.folds, cv.fold, cv.stratified, config.seed)
    if input_spec(data, splits.train.class_names) != facts.input_spec:
        raise LabError(
            f"data.root={data.root} has the classes {list(splits.train.class_names)[:8]}, the checkpoint was "
            f"trained on {list(facts.input_spec.class_names)[:8]}: give the folder of its images by {option}"
        )
    return data, splits
