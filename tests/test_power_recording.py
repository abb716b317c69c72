"""Recording power in a thread, and joules per image from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType

import pytest

from deploy.errors import LabError
from deploy.power import PowerSample
from deploy.power_recording import energy_of, mean_watts, record_power


class Meter:
    """Not a meter of any hardware: it says the same all the time, and where told fails from a reading on."""

    source, rail, rails = "ina3221", "VDD_IN", ("VDD_IN", "VDD_SOC")

    def __init__(self, hertz: float = 200.0, fails_at: int | None = None) -> None:
        self.hertz = hertz
        self.num_reads = 0
        self.enough = threading.Event()
        self._fails_at = fails_at

    def read(self) -> PowerSample:
        self.num_reads += 1
        if self._fails_at is not None and self.num_reads >= self._fails_at:
            self.enough.set()
            raise LabError("power: rail VDD_IN cannot be read")
        if self.num_reads > 5:
            self.enough.set()
        return PowerSample(time.monotonic(), {"VDD_IN": 5.0, "VDD_SOC": 1.0})

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def samples(*pairs: tuple[float, float]) -> list[PowerSample]:
    return [PowerSample(seconds, {"VDD_IN": watts, "VDD_SOC": 1.0}) for seconds, watts in pairs]


def test_samples_come_while_the_work_goes_on() -> None:
    meter, begin = Meter(), time.monotonic()
    with record_power(meter) as recording:
        assert meter.enough.wait(20)
    end = time.monotonic()
    times = [sample.seconds for sample in recording.samples]
    assert len(times) >= 4
    assert begin <= times[0] <= times[-1] <= end
    assert times == sorted(times)
    num_reads = meter.num_reads
    with record_power(meter):  # the thread of before is gone: it would read on
        pass
    assert meter.num_reads <= num_reads + 3


def test_a_stretch_shorter_than_the_period_still_has_a_sample() -> None:
    with record_power(Meter(hertz=0.5)) as recording:
        pass
    assert recording.samples


def test_what_was_read_after_the_end_does_not_count() -> None:
    class Late(Meter):
        def read(self) -> PowerSample:
            return PowerSample(super().read().seconds + 3600, {"VDD_IN": 5.0, "VDD_SOC": 1.0})

    with record_power(Late()) as recording:
        pass
    assert recording.samples == []


def test_a_meter_that_does_not_answer_stops_before_the_work() -> None:
    with pytest.raises(LabError, match="cannot be read"), record_power(Meter(fails_at=1)):
        pytest.fail("the work has begun")


def test_a_meter_that_falls_silent_meanwhile_is_an_error() -> None:
    meter = Meter(fails_at=4)
    with pytest.raises(LabError, match="cannot be read"), record_power(meter) as recording:
        assert meter.enough.wait(20)
    assert isinstance(recording.failure, LabError)
    assert len(recording.samples) == 2


def test_an_error_of_the_work_comes_out_as_it_is() -> None:
    meter = Meter(fails_at=4)
    with pytest.raises(KeyError, match="work"), record_power(meter):  # noqa: PT012  # it must fail first
        assert meter.enough.wait(20)
        raise KeyError("work")


def test_the_mean_is_of_time_and_not_of_samples() -> None:
    """2 W for 1 s, then up to 10 W within 1 s, and 10 W for 8 s: (2 + 6 + 80) J in 10 s."""
    uneven = samples((0, 2), (1, 2), (2, 10), (10, 10))
    assert mean_watts(uneven, "VDD_IN") == pytest.approx(8.8)
    assert mean_watts(uneven, "VDD_SOC") == pytest.approx(1)
    assert mean_watts(samples((3, 7)), "VDD_IN") == 7
    assert mean_watts(samples((3, 7), (3, 9)), "VDD_IN") == 9


def test_joules_per_image() -> None:
    energy = energy_of(
        Meter(), samples((0, 4), (2, 4)), samples((5, 10), (6, 10), (7, 10)), images=50, seconds=2
    )
    assert energy.source == "ina3221"
    assert energy.rail == "VDD_IN"
    assert energy.watts == pytest.approx({"VDD_IN": 10, "VDD_SOC": 1})
    assert energy.idle_watts == 4
    assert energy.joules_per_image == pytest.approx(10 * 2 / 50)
    assert energy.joules_per_image_above_idle == pytest.approx(6 * 2 / 50)
    assert energy.sample_hertz == pytest.approx(1)
    assert energy.num_samples == 3


def test_noise_is_not_clipped() -> None:
    energy = energy_of(Meter(), samples((0, 5)), samples((1, 4)), images=1, seconds=1)
    assert energy.joules_per_image_above_idle == -1
    assert energy.sample_hertz == 200


@pytest.mark.parametrize(
    ("idle", "busy", "images", "seconds", "words"),
    [
        ([], samples((0, 1)), 1, 1.0, "no sample of VDD_IN while idle.*200 a second"),
        (samples((0, 1)), [], 1, 1.0, "no sample of VDD_IN under load"),
        (samples((0, 1)), samples((0, 1)), 0, 1.0, "0 images"),
        (samples((0, 1)), samples((0, 1)), 1, 0.0, "in 0 s"),
        (samples((0, 1)), samples((0, 1)), 1, float("nan"), "in nan s"),
    ],
)
def test_no_sample_is_an_error(
    idle: list[PowerSample], busy: list[PowerSample], images: int, seconds: float, words: str
) -> None:
    with pytest.raises(LabError, match=words):
        energy_of(Meter(), idle, busy, images, seconds)


def test_watts_are_of_every_rail() -> None:
    watts: Mapping[str, float] = energy_of(Meter(), samples((0, 1)), samples((0, 1)), 1, 1).watts
    assert set(watts) == set(Meter.rails)
