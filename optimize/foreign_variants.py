"""A model of anyone's to the variants of a bundle: as it is, INT8 of one set of scales, FP16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from configs.quantize import QuantizeConfig
from deploy.backends import cpu_threads
from deploy.bundle import Variant, file_sha256
from deploy.target import DLA_BACKEND, load_target
from deploy.tensors import Samples
from optimize.calibrate import Scales
from optimize.dla import write_dla
from optimize.dla_report import DlaReport
from optimize.foreign import Foreign
from optimize.foreign_samples import Feeds
from optimize.quantize import SCALES_NAME
from optimize.quantize_foreign import NUM_GATED, ForeignFiles, quantize_foreign
from optimize.targets import need_dla_files
from optimize.variants import Made, for_dla

_NUM_NAMED = 6
Say = Callable[[str], None]
IN_HAND_DB = 1.0
"""Asked for beyond the gate's limit: it judges on other samples than those that layers were chosen on."""


def make_foreign(
    path: Path, foreign: Foreign, calibration: Samples, config: QuantizeConfig, work: Path, say: Say
) -> list[Made]:
    """`fp32`, and of what `config.precisions` asks for `int8-cpu`, `int8` and `fp16`, their files in `work`.

    path: the file that `foreign` was read from. Raises LabError.
    """
    work.mkdir(parents=True, exist_ok=True)
    feeds = Feeds(calibration)
    files = quantize_foreign(
        foreign,
        feeds,
        work,
        method=config.calibration.method,
        percentile=config.calibration.percentile,
        precisions=config.precisions,
        min_snr_db=None if config.min_snr_db is None else config.min_snr_db + IN_HAND_DB,
        threads=cpu_threads(config.bench.threads),
        checks=[feeds[i] for i in range(max(0, len(feeds) - NUM_GATED), len(feeds))],
    )
    source = {"onnx": path.name, "onnx_sha256": file_sha256(path), "changes": files.record["changes"]}
    count = num_parameters(onnx.load(files.fp32))

    def variant(name: str, backend: str, **more: Any) -> Variant:
        precision = name.removesuffix("-cpu")
        metrics = files.record.get(precision, {})
        return Variant(name, "", precision, backend, count, source | more, metrics)

    made = [Made(variant("fp32", "onnxruntime"), files.fp32, "fp32")]
    settings = asdict(config.calibration)
    if files.int8_cpu is not None and files.int8 is not None:
        say(_told(files.record["int8"], len(feeds)))
        cpu = variant("int8-cpu", "onnxruntime", calibration=settings)
        tensorrt = variant("int8", "tensorrt", calibration=settings)
        made += [Made(cpu, files.int8_cpu, cpu.name), Made(tensorrt, files.int8, cpu.name)]
        if need_dla_files([load_target(name) for name in config.targets]):
            report = _write_dla(files, work)
            say(f"for DLA: {report}")
            one = variant("dla", DLA_BACKEND, calibration=settings)
            metrics = tensorrt.metrics | {"dla": asdict(report)}
            made.append(for_dla(replace(one, precision="int8", metrics=metrics), cpu.name, work))
    if files.fp16 is not None:
        half = files.record["fp16"]
        say(f"fp16: {_closeness(half['outputs'])}{_kept(half['keep_float'])}")
        made.append(Made(variant("fp16", "tensorrt"), files.fp16, "fp16"))
    return made


def _write_dla(files: ForeignFiles, work: Path) -> DlaReport:
    scales = Scales.from_json((work / SCALES_NAME).read_text())
    return write_dla(onnx.load(files.fp32), scales, frozenset(files.record["int8"]["keep_float"]), work)


def num_parameters(model: onnx.ModelProto) -> int:
    """Floating-point numbers among the constants."""
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats)


def _told(record: Mapping[str, Any], num_samples: int) -> str:
    return (
        f"quantised: {record['num_int8_layers']} of {record['num_layers']} layers in INT8, "
        f"{record['method']} over {num_samples} samples; {_closeness(record['outputs'])}"
        f"{_kept(record['keep_float'])}"
    )


def _closeness(outputs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['output']} {one['snr_db']:.1f} dB from the original" for one in outputs)


def _kept(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
    return f"; in float: {', '.join(names[:_NUM_NAMED])}{more}"
