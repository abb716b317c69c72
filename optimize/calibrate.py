"""Activation scales of a float network: one symmetric int8 scale for each tensor of `placement`.

Own code rather than onnxruntime.quantization's calibrators: those keep every activation of every image in
memory until the end. Here one pass over the images fills a histogram of |x| a tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from configs.quantize import CalibrationMethod
from deploy.errors import LabError
from deploy.machine import usable_cores
from optimize.qdq_placement import Placement

LEVELS = 127
# Between half of them and all hold data (the range is a power of two), so 2048 or more.
NUM_BINS = 4096
# Values at a time, whose bins a core's cache holds: a third of the time that a whole tensor of 224 px takes.
CHUNK = 1 << 15
# Below this a tensor counts as zero: its scale would leave float32's normal numbers.
ZERO = 1e-30


@dataclass(frozen=True)
class Scales:
    """Symmetric int8 scales of activations: value = scale x integer, integer in -127..127."""

    method: str
    num_images: int
    tensors: dict[str, float]
    """Tensor name to scale; each is a float32, held exactly."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Scales:
        """The inverse of :meth:`to_json`. Raises LabError for another shape or a scale that is no scale."""
        try:
            raw: Any = json.loads(text)
            scales = cls(
                str(raw["method"]),
                int(raw["num_images"]),
                {str(name): float(value) for name, value in raw["tensors"].items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise LabError(f"scales: not a scales.json ({error!r}); run the quantisation again") from error
        bad = {name: v for name, v in scales.tensors.items() if not (math.isfinite(v) and v > 0)}
        if bad:
            raise LabError(f"scales: {bad} must be finite and above 0; run the quantisation again")
        return scales


class Histogram:
    """Counts of |x| in NUM_BINS equal bins from 0 to a power of two, which doubles when a value exceeds it.

    Doubling adds up pairs of bins and loses nothing, so the counts do not depend on the order of the images.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(NUM_BINS, np.int64)
        self.limit = 0.0
        self.max = 0.0

    def add(self, values: npt.NDArray[Any], counted: bool = True) -> None:
        """`values`: float32 of any shape. `counted`: False where only the largest |x| is asked for.

        Raises ValueError for NaN and infinity.
        """
        flat = values.ravel()
        largest = float(np.maximum(flat.max(), -flat.min()))  # a NaN is both
        if not math.isfinite(largest):
            raise ValueError("NaN or infinity")
        self.max = max(self.max, largest)
        if not counted:
            return
        if self.limit == 0.0:
            if largest < ZERO:
                self.counts[0] += flat.size
                return
            self.limit = 2.0 ** math.ceil(math.log2(largest))
        while self.limit < largest:
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(1), np.zeros(NUM_BINS // 2, np.int64)]
            )
            self.limit *= 2
        factor = np.float32(NUM_BINS / self.limit)
        for start in range(0, flat.size, CHUNK):
            bins = (np.abs(flat[start : start + CHUNK]) * factor).astype(np.intp)
            found = np.bincount(bins, minlength=NUM_BINS + 1)
            self.counts += found[:NUM_BINS]
            self.counts[-1] += found[NUM_BINS]  # the limit itself

    def amax(self, method: CalibrationMethod, percentile: float) -> float:
        """The magnitude that becomes 127."""
        if self.max < ZERO:
            return 1.0
        if method == "max":
            return self.max
        if method == "percentile":
            needed = percentile / 100 * self.counts.sum()
            num_bins = int(np.searchsorted(np.cumsum(self.counts), needed)) + 1
        elif method == "entropy":
            num_bins = _entropy_bins(self.counts)
        else:
            num_bins = _mse_bins(self.counts)
        return min(self.max, num_bins * self.limit / NUM_BINS)


def calibrate(
    onnx_path: Path, batches: Iterable[npt.NDArray[Any]], method: CalibrationMethod, percentile: float
) -> Scales:
    """Run the float network over `batches` (float32 N x 3 x size x size) and choose amax for each tensor.

    `max`: the largest |x| seen. `percentile`: the |x| that this percentage of the values does not exceed.
    `entropy`: the cut with the least Kullback-Leibler divergence (:func:`_entropy_bins`). `mse`: the cut with
    the least squared error (:func:`_mse_bins`). The scale is amax / 127. A tensor that was zero throughout
    gets amax 1: whatever it is one day, 1 is no worse a guess.
    Raises LabError for an unknown method, for no images, and for a tensor with NaN or infinity.
    """
    model = onnx.load(onnx_path)
    name = model.graph.input[0].name
    # Image by image: eight at a time took 2.1 GB for ResNet-50 at 224 px against 0.7, and was slower.
    feeds = ({name: image[None]} for batch in batches for image in batch)
    return calibrate_feeds(model, feeds, method, percentile)


def calibrate_feeds(
    model: onnx.ModelProto,
    feeds: Iterable[Mapping[str, npt.NDArray[Any]]],
    method: CalibrationMethod,
    percentile: float,
) -> Scales:
    """As :func:`calibrate`, of a network with any inputs: a feed is a sample, every input with a batch of 1.

    Tensors that share a scale have that of the widest. `model` itself stays as it is.
    """
    if method not in get_args(CalibrationMethod):
        raise LabError(
            f"calibration: method {method!r} must be one of {', '.join(get_args(CalibrationMethod))}"
        )
    if not 0 < percentile <= 100:
        raise LabError(
            f"calibration: percentile {percentile} must be above 0 and at most 100; 99.99 is usual"
        )
    placement = Placement(model)
    histograms = {tensor.name: Histogram() for tensor in placement.tensors}
    computed = [name for name in histograms if name in placement.index.producer]
    session = _session(model, computed)
    counted = method != "max"
    num_images = 0

    def add(name: str) -> None:
        try:
            histograms[name].add(values[name], counted)
        except ValueError as error:
            raise LabError(
                f"calibration: tensor {name!r} holds {error} on image {num_images}; check "
                "the checkpoint and the input images"
            ) from error

    # numpy lets other threads work while it counts.
    with ThreadPoolExecutor(usable_cores()) as pool:
        for feed in feeds:
            try:
                found = session.run(computed, feed) if computed else []
            except Exception as error:  # ONNX Runtime's share no base
                raise LabError(
                    f"calibration: the network fails on image {num_images} "
                    f"({' '.join(str(error).split())[:300]}); check its values and sizes"
                ) from error
            values = {**feed, **dict(zip(computed, found, strict=True))}
            list(pool.map(add, histograms))
            num_images += 1
    if num_images == 0:
        raise LabError("calibration: 0 images, at least 1 is needed and 512 are usual; check the data split")
    label = f"percentile {percentile}" if method == "percentile" else method
    scales = {name: float(np.float32(h.amax(method, percentile) / LEVELS)) for name, h in histograms.items()}
    for group in placement.scale_groups():
        scales |= dict.fromkeys(group, max(scales[name] for name in group))
    return Scales(label, num_images, scales)


def _session(model: onnx.ModelProto, computed: list[str]) -> onnxruntime.InferenceSession:
    """Which gives the tensors `computed`, and no others."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    given = {output.name for output in model.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in given)
    options = onnxruntime.SessionOptions()
    # Its threads would otherwise wait busily for the next image while this file counts.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = exposed.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _entropy_bins(counts: npt.NDArray[Any]) -> int:
    """Number of leading bins to keep so that 128 levels tell least apart from the full histogram.

    S. Migacz, "8-bit Inference with TensorRT", GTC 2017: for each cut, P is the histogram with what lies
    beyond added to its last bin, Q the same bins averaged in 128 groups over those that are not empty; the
    cut with the least KL(P || Q) wins. Bin 0 is set to bin 1, as NVIDIA's pytorch-quantization does: the
    zeros behind a ReLU are exact at any scale and would drown the rest.
    """
    groups = LEVELS + 1
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else groups
    best, best_divergence = used, math.inf
    # Steps of 8 bins: 0.2 % of the range, and an eighth of the time.
    for cut in range(used, groups - 1, -8):
        kept = counts[:cut]
        group = np.arange(cut) * groups // cut
        filled = kept > 0
        total = np.bincount(group, kept, groups)
        number = np.bincount(group, filled, groups)
        q = np.where(filled, (total / np.maximum(number, 1))[group], 0.0)
        p = kept.copy()
        p[-1] += counts[cut:].sum()
        if q[-1] == 0 and p[-1] > 0:
            continue  # infinite divergence
        q, p = q[filled] / q.sum(), p[filled] / p.sum()
        divergence = float((p * np.log(p / q)).sum())
        if divergence < best_divergence:
            best, best_divergence = cut, divergence
    return best


def _mse_bins(counts: npt.NDArray[Any]) -> int:
    """Number of leading bins to keep so that quantising and dequantising errs least, in float64.

    The error of amax a is the sum over the bins of n x (c - q(c))^2, where n is a bin's count, c its middle,
    and q(c) = min(rint(c / s), 127) x s with s = a / 127: rounding within the range, clipping beyond it. With
    fewer than 128 bins a step would be finer than the histogram, so there it does not look.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1
    filled = np.flatnonzero(counts)
    middles, numbers = filled + 0.5, counts[filled].astype(np.float64)
    best, best_error = used, math.inf
    for cut in range(used, LEVELS, -8):  # steps as in `_entropy_bins`
        step = cut / LEVELS
        error = middles - np.minimum(np.rint(middles / step), LEVELS) * step
        total = float((numbers * error * error).sum())
        if total < best_error:
            best, best_error = cut, total
    return best
