"""What a complete run leaves for others to read: its config and the metrics of its end, in result.json."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from configs.load import as_dict, from_dict
from configs.schema import TrainConfig
from deploy.errors import LabError
from train.checkpoint import require_same_run

NAME = "result.json"


@dataclass(frozen=True)
class Result:
    config: TrainConfig
    metrics: dict[str, float]
    """Of the last evaluation."""


def keep_result(run_dir: Path, result: Result) -> None:
    write_json(run_dir / NAME, {"config": as_dict(result.config), "metrics": result.metrics})


def read_result(run_dir: Path, config: TrainConfig) -> Result | None:
    """None where the folder holds no complete run of this config."""
    try:
        raw = json.loads((run_dir / NAME).read_text())
        result = Result(from_dict(raw["config"], TrainConfig), raw["metrics"])
        require_same_run(result.config, config)
    except (FileNotFoundError, LabError):
        return None
    return result


def write_json(path: Path, content: object) -> None:
    """Beside and renamed: whatever happens, the file is whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)
