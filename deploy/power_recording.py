"""Power over a stretch of time, and what an image costs of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from deploy.errors import LabError
from deploy.power import Energy, PowerMeter, PowerSample


@dataclass
class Recording:
    """It fills while the `with` runs; `failure` is what ended it early."""

    samples: list[PowerSample] = field(default_factory=list)
    failure: LabError | None = None


@contextmanager
def record_power(meter: PowerMeter) -> Iterator[Recording]:
    """Read an opened meter at its rate, in a thread, for as long as the `with` runs.

    Raises LabError before the body where the meter does not answer, and after it where it fell silent
    meanwhile: a part of the time is no measure of all of it.
    """
    recording = Recording()
    # Of a counter the first reading is a mean that reaches back before this moment.
    meter.read()
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(meter, recording, stop), name="power", daemon=True)
    thread.start()
    try:
        yield recording
    finally:
        stopped = time.monotonic()
        stop.set()
        thread.join()
        # The last reading began at the end, and tells what the chip saw before it; a line of tegrastats that
        # had to be waited for does not.
        late = stopped + 0.25 / meter.hertz
        recording.samples = [sample for sample in recording.samples if sample.seconds <= late]
    if recording.failure is not None:
        raise recording.failure


def energy_of(
    meter: PowerMeter, idle: Sequence[PowerSample], busy: Sequence[PowerSample], images: int, seconds: float
) -> Energy:
    """What `images` cost that took `seconds`, from samples of that time and of an idle time before.

    Mean power is the integral by the trapezoidal rule over the samples' own times, divided by their span.
    Joules above idle can come out below 0, where noise is larger than the load.

    Raises LabError where either has no sample, and for no images or no time.
    """
    if images < 1 or not seconds > 0:
        raise LabError(
            f"energy: {images} images in {seconds:g} s; at least one image and some time are needed"
        )
    for samples, when in ((busy, "under load"), (idle, "while idle")):
        if not samples:
            raise LabError(
                f"energy: no sample of {meter.rail} {when}; the meter ({meter.source}) has {meter.hertz:g} a "
                "second: measure for longer"
            )
    watts = {rail: mean_watts(busy, rail) for rail in busy[0].watts}
    idle_watts = mean_watts(idle, meter.rail)
    span = busy[-1].seconds - busy[0].seconds
    return Energy(
        source=meter.source,
        rail=meter.rail,
        watts=watts,
        idle_watts=idle_watts,
        joules_per_image=watts[meter.rail] * seconds / images,
        joules_per_image_above_idle=(watts[meter.rail] - idle_watts) * seconds / images,
        sample_hertz=(len(busy) - 1) / span if span > 0 else meter.hertz,
        num_samples=len(busy),
    )


def mean_watts(samples: Sequence[PowerSample], rail: str) -> float:
    """Over the time from the first sample to the last; of a single one its own value."""
    span = samples[-1].seconds - samples[0].seconds
    if span <= 0:
        return samples[-1].watts[rail]
    pairs = pairwise(samples)
    area = sum((a.watts[rail] + b.watts[rail]) / 2 * (b.seconds - a.seconds) for a, b in pairs)
    return area / span


def _fill(meter: PowerMeter, recording: Recording, stop: threading.Event) -> None:
    period = 1 / meter.hertz
    due = time.monotonic()
    try:
        while True:
            recording.samples.append(meter.read())
            due = max(due + period, time.monotonic() - period)
            if stop.wait(max(0.0, due - time.monotonic())):
                break
        # So that a short stretch has its end as well as its beginning.
        recording.samples.append(meter.read())
    except LabError as error:
        recording.failure = error
