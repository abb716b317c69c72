"""The published figures of `published_latency.yaml`, and what the estimator says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import torch
import torchvision
import yaml

from deploy.graph_cost import Layer, read_layers
from deploy.input_spec import InputSpec
from deploy.latency_model import Fitted, Processor, Work, dla_images_per_s, layer_seconds, work_of
from deploy.processor import processor_of
from deploy.target import load_target
from optimize.calibrate import Scales
from optimize.export import export_onnx
from optimize.precision import to_fp16
from optimize.qdq import NumberFormat, emit
from optimize.qdq_placement import quantised_tensors

FILE = Path(__file__).with_name("published_latency.yaml")
TUNED = ("mlperf", "dla-sw")
"""Sources whose kernels a submitter chose by hand."""
Network = Mapping[str, Sequence[Layer]]
"""By precision, for one image."""


@dataclass(frozen=True)
class Row:
    """A published figure and all that its estimate takes."""

    device: str
    source: str
    round: str
    batch: int
    precision: str
    runs_on: str
    """gpu, gpu+dla or dla."""
    images_per_s: float
    """Of one card, or of the module with its DLA cores."""
    processor: Processor
    wall_w: float | None
    published: str
    """As its source has it."""
    gpu_layers: Sequence[Layer] = field(repr=False)
    dla_layers: Sequence[Layer] = field(repr=False)
    dla_batch: int

    @cached_property
    def work(self) -> Work:
        return work_of(self.gpu_layers, self.processor)

    def predicted(self, fitted: Fitted) -> float:
        """Images a second."""
        slower = 1.0 if self.source in TUNED else fitted.untuned
        gpu = dla = 0.0
        if "gpu" in self.runs_on:
            gpu = self.batch / float(layer_seconds(self.work, self.processor, fitted).sum())
        if "dla" in self.runs_on:
            dla = dla_images_per_s(self.dla_layers, self.processor, fitted, self.dla_batch)
        return (gpu + dla) / slower

    def error(self, fitted: Fitted) -> float:
        """Predicted over published time, less 1."""
        return self.images_per_s / self.predicted(fitted) - 1


def read_rows(network: Network, section: str = "rows") -> list[Row]:
    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    processors = {name: _processor(figures) for name, figures in raw["processors"].items()}
    return [_row(entry, processors[entry["device"]], network) for entry in raw[section]]


def _processor(figures: Mapping[str, Any]) -> Processor:
    if "target" in figures:
        return processor_of(load_target(figures["target"]), figures.get("mode"))
    rates = {name: figures[name] for name in ("int8", "fp16", "fp32") if name in figures}
    others = {name: value for name, value in figures.items() if name not in rates}
    return Processor(**{"volta": False, **others}, ops_per_clock_per_sm=rates)


def _row(raw: Mapping[str, Any], processor: Processor, network: Network) -> Row:
    at = raw.get("at", {})
    processor = replace(
        processor,
        clock_ghz=at.get("gpu", processor.clock_ghz),
        memory_gb_per_s=at.get("memory", processor.memory_gb_per_s),
        dla_ghz=tuple(at.get("dla", ghz) for ghz in processor.dla_ghz),
    )
    batch, dla_batch, precision = (
        raw["batch"],
        raw.get("dla_batch", raw["batch"]),
        raw.get("precision", "int8"),
    )
    per_s = raw["per_s"] / raw.get("cards", 1) if "per_s" in raw else batch * 1e3 / raw["ms"]
    many = f", {raw['cards']} cards" if "cards" in raw else ""
    published = f"{raw['per_s']:,.10g}/s{many}" if "per_s" in raw else f"{raw['ms']:g} ms"
    return Row(
        device=raw["device"],
        source=raw["source"],
        round=" ".join(filter(None, (raw.get("round", ""), raw.get("percentile", "")))),
        batch=batch,
        precision=precision,
        runs_on=raw.get("runs_on", "gpu"),
        images_per_s=per_s,
        processor=processor,
        wall_w=raw.get("wall_w"),
        published=published,
        gpu_layers=at_batch(network[precision], batch),
        dla_layers=at_batch(network["int8"], dla_batch),
        dla_batch=dla_batch,
    )


def at_batch(layers: Sequence[Layer], batch: int) -> list[Layer]:
    """Layers of one image for more of them: all but the weights grow with the batch."""
    return [
        replace(
            layer,
            rows=layer.rows * batch,
            read_bytes=layer.read_bytes * batch,
            write_bytes=layer.write_bytes * batch,
            output_shape=(batch, *layer.output_shape[1:]),
        )
        for layer in layers
    ]


def resnet50() -> Network:
    """Of 224 px and 1,000 classes, exported and quantised as a bundle's files are; random weights."""
    with TemporaryDirectory() as folder:
        model = torchvision.models.resnet50(weights=None)
        files = write_files(model, 224, 1000, Path(folder), ("fp32", "fp16", "int8"))
        return {precision: read_layers(file, 1) for precision, file in files.items()}


def write_files(
    model: torch.nn.Module, size: int, num_classes: int, folder: Path, variants: Sequence[str]
) -> dict[str, Path]:
    """Of fp32, which has to be among them, fp16, int8 (for TensorRT) and int8-cpu.

    Every scale is 1/32: no time depends on it.
    """
    names = tuple(f"class{i}" for i in range(num_classes))
    spec = InputSpec(size=size, resize=size, mean=(0.5,) * 3, std=(0.5,) * 3, class_names=names)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.onnx" for name in variants}
    export_onnx(model, spec, files["fp32"])
    if "fp16" in files:
        to_fp16(files["fp32"], files["fp16"])
    proto = onnx.load(files["fp32"])
    scales = Scales("none", 1, {tensor.name: 1 / 32 for tensor in quantised_tensors(proto)})
    forms: dict[str, NumberFormat] = {"int8": "s8", "int8-cpu": "u8"}
    for name in forms.keys() & files.keys():
        onnx.save(emit(proto, scales, forms[name]), files[name])
    return files
