"""A model of anyone's and its samples, read and held against each other before any work begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.quantize import QuantizeConfig
from deploy.errors import LabError
from deploy.input_spec import InputSpec
from deploy.tensors import Samples, read_tensors
from optimize.fidelity import plain_session
from optimize.foreign import Foreign, read_onnx
from optimize.foreign_samples import ImageFiles, image_spec, read_samples, split
from optimize.foreign_shape import Sides, class_output_of, settle

Say = Callable[[str], None]
_NUM_LOOKED_AT = 16
_WIDE = 4.0
"""Between the largest values of two sets of samples of one kind; 0..1 and 0..255 differ by 255."""


@dataclass(frozen=True)
class Job:
    """All that the road begins with."""

    foreign: Foreign
    class_output: str | None
    calibration: Samples
    test: Samples
    spec: InputSpec | None
    """How an image file becomes the input, where the samples are image files."""


def read_job(path: Path, config: QuantizeConfig, say: Say) -> Job:
    """What was taken for granted is said. Raises LabError."""
    assert config.calibration.source is not None  # the schema has seen to that
    source, how = Path(config.calibration.source), config.preprocess
    foreign = read_onnx(path)
    say(f"{path}: {'; '.join(foreign.changes) or 'taken as it is'}")
    foreign = settle(foreign, _sides(source, foreign, config), say)
    class_output = class_output_of(config.class_output, foreign.outputs)
    num_classes = next((o.shape[1] for o in foreign.outputs if o.name == class_output), None)
    found = read_samples(source, foreign.inputs, how, num_classes)
    given = None
    if config.test is not None:
        given = read_samples(Path(config.test), foreign.inputs, how, num_classes)
    calibration, test = split(found, given, config.calibration.num_images, config.seed)
    if class_output is None and test.labels is not None:
        raise LabError(
            f"there are labels, but which output names the class? Give class_output=NAME, one of "
            f"{[o.name for o in foreign.outputs]}, N x classes; or leave the labels out"
        )
    spec = found.spec if isinstance(found, ImageFiles) else None
    for line in _told(class_output, num_classes, calibration, test, spec, config):
        say(line)
    _try_all(foreign, calibration, "calibration")
    _try_all(foreign, test, "test")
    return Job(foreign, class_output, calibration, test, spec)


def _sides(source: Path, foreign: Foreign, config: QuantizeConfig) -> Sides:
    """Of each input without the batch, as the samples have them."""
    if source.is_dir():
        size = image_spec(foreign.inputs, config.preprocess, ()).size
        return {foreign.inputs[0].name: (3, size, size)}
    return {name: array.shape[1:] for name, array in read_tensors(source, foreign.inputs).arrays.items()}


def _told(
    class_output: str | None,
    num_classes: int | None,
    calibration: Samples,
    test: Samples,
    spec: InputSpec | None,
    config: QuantizeConfig,
) -> list[str]:
    lines = [f"{len(calibration)} samples calibrate, {len(test)} others are compared"]
    if spec is not None:
        lines.append(
            f"images: shorter side to {spec.resize} px, the middle {spec.size} x {spec.size}, RGB, 0 to 1, "
            f"less {list(spec.mean)}, over {list(spec.std)}; a model that wants others takes preprocess.*"
        )
    if class_output is not None:
        lines.append(
            f"classes: output {class_output!r} names one of {num_classes}; if it does not, class_output=null"
        )
        if test.labels is None:
            lines.append("no labels: the class is compared with the original's, no accuracy is measured")
        elif spec is not None and len(spec.class_names) == num_classes:
            first, last = spec.class_names[0], spec.class_names[-1]
            lines.append(f"class 0 is {first!r}, class {len(spec.class_names) - 1} is {last!r}")
    if config.test is not None:
        lines += _ranges(calibration, test)
    return lines


def _ranges(calibration: Samples, test: Samples) -> list[str]:
    """A warning where the two sets of samples can hardly be prepared alike."""
    lines = []
    first, other = (next(found.batches(_NUM_LOOKED_AT)).arrays for found in (calibration, test))
    for name, array in first.items():
        if array.dtype.kind != "f":
            continue
        ours, theirs = float(np.abs(array).max()), float(np.abs(other[name]).max())
        if max(ours, theirs) > _WIDE * min(ours, theirs):
            lines.append(
                f"WARNING: {name!r} reaches {ours:g} in calibration and {theirs:g} in the test samples: are "
                "both prepared in the same way?"
            )
    return lines


def _try_all(foreign: Foreign, samples: Samples, what: str) -> None:
    """Whole numbers are indexes, often: one beyond a table of the model fails only on that sample."""
    if all(spec.dtype.startswith("float") for spec in foreign.inputs):
        return
    session = plain_session(foreign.model)
    for i, one in enumerate(samples.batches(1)):
        try:
            session.run(None, dict(one.arrays))
        # Its exceptions share no base but Exception.
        except Exception as error:
            ranges = {name: f"{array.min()} to {array.max()}" for name, array in one.arrays.items()}
            raise LabError(
                f"the model fails on sample {i} of {what}, whose inputs hold {ranges}: "
                f"{' '.join(str(error).split())[:300]}; mend or leave out that sample"
            ) from error
