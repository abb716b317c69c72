"""What makes an INT8 file of a float ONNX file: ours and others, for `scripts/bench_int8.py`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.quantize import CalibrationConfig
from optimize.quantize import S8_NAME, U8_NAME, quantize_onnx

Images = list[npt.NDArray[np.float32]]
"""Calibration images, each 1 x 3 x size x size."""
BOTH = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Int8File:
    contender: str
    path: Path
    backends: tuple[str, ...]
    """Those that can open it."""


Make = Callable[[Path, Images, Path, CalibrationConfig], list[Int8File]]
"""(float file, calibration images, folder, our settings) -> its files. ImportError: it is not installed."""


def ours(fp32: Path, images: Images, folder: Path, config: CalibrationConfig) -> list[Int8File]:
    """The two files of a bundle, which agree in every integer."""
    quantize_onnx(
        fp32,
        images,
        folder,
        config.method,
        config.percentile,
        equalise=config.equalise,
        correct=config.correct_biases,
    )
    return [
        Int8File("ours, int8-cpu", folder / U8_NAME, BOTH),
        Int8File("ours, int8", folder / S8_NAME, BOTH),
    ]


def onnxruntime_static(fp32: Path, images: Images, folder: Path, config: CalibrationConfig) -> list[Int8File]:
    """ONNX Runtime's quantiser as its documentation advises for a CPU with VNNI: preprocessed, Q/DQ, U8 and
    S8, weights per channel, the ranges of all images."""
    tools = import_module("onnxruntime.quantization")
    prepare = import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    prepared, out = folder / "prepared.onnx", folder / "onnxruntime.onnx"
    prepare(str(fp32), str(prepared))
    tools.quantize_static(
        str(prepared),
        str(out),
        _reader(tools.CalibrationDataReader, _input_name(fp32), images),
        quant_format=tools.QuantFormat.QDQ,
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=tools.CalibrationMethod.MinMax,
    )
    return [Int8File("ONNX Runtime", out, BOTH)]


def modelopt(fp32: Path, images: Images, folder: Path, config: CalibrationConfig) -> list[Int8File]:
    """NVIDIA Model Optimizer, S8 for TensorRT, what it leaves in float in FP32."""
    if importlib.util.find_spec("tensorrt") and not hasattr(import_module("tensorrt"), "Logger"):
        sys.modules["tensorrt"] = None  # type: ignore[assignment]  # tensorrt-stubs: types alone, which it would use
    quantize = import_module("modelopt.onnx.quantization").quantize
    out = folder / "modelopt.onnx"
    quantize(
        onnx_path=str(fp32),
        quantize_mode="int8",
        calibration_data=np.concatenate(images),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out),
    )
    return [Int8File("modelopt", out, BOTH)]


def nncf_onnx(fp32: Path, images: Images, folder: Path, config: CalibrationConfig) -> list[Int8File]:
    nncf, onnx = import_module("nncf"), import_module("onnx")
    out = folder / "nncf.onnx"
    onnx.save(_nncf(nncf, onnx.load(fp32), _input_name(fp32), images), out)
    return [Int8File("NNCF, ONNX", out, BOTH)]


def nncf_openvino(fp32: Path, images: Images, folder: Path, config: CalibrationConfig) -> list[Int8File]:
    nncf, openvino = import_module("nncf"), import_module("openvino")
    out = folder / "nncf.xml"
    model = openvino.Core().read_model(fp32)
    openvino.save_model(_nncf(nncf, model, _input_name(fp32), images), out, compress_to_fp16=False)
    return [Int8File("NNCF, OpenVINO", out, ("openvino",))]


MAKERS: dict[str, Make] = {
    "ours": ours,
    "onnxruntime": onnxruntime_static,
    "modelopt": modelopt,
    "nncf-onnx": nncf_onnx,
    "nncf-openvino": nncf_openvino,
}


def make_files(
    names: Sequence[str], fp32: Path, images: Images, folder: Path, config: CalibrationConfig
) -> list[Int8File]:
    """Of every contender that is installed; says which are not, and which fail."""
    files = []
    for name in names:
        work = folder / name
        work.mkdir()
        try:
            with _quiet():
                files += MAKERS[name](fp32, images, work, config)
        except ImportError as error:
            print(f"  {name}: left out ({error}; pip install -e '.[peers]' brings all of them)")
        except Exception as error:
            # Another's failure on this network is a result too, and no reason to lose the other figures.
            if name == "ours":
                raise
            print(f"  {name}: failed ({type(error).__name__}: {str(error)[:200]})")
    return files


def _nncf(nncf: Any, model: Any, name: str, images: Images) -> Any:
    """With its defaults for a network of ReLUs: symmetric ranges, fast bias correction."""
    dataset = nncf.Dataset([{name: image} for image in images])
    return nncf.quantize(model, dataset, subset_size=len(images), preset=nncf.QuantizationPreset.PERFORMANCE)


def _input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(path, load_external_data=False).graph.input[0].name)


def _reader(base: type[Any], name: str, images: Images) -> Any:
    class Reader(base):  # type: ignore[misc]  # its base is known at run time only
        def __init__(self) -> None:
            self._images: Iterator[npt.NDArray[np.float32]] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {name: image}

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """They report by print, log and progress bars; what goes wrong is still raised."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)
