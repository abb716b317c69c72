"""Power and state of a real NVIDIA card; skipped where there is none."""

from __future__ import annotations

import pytest

from deploy.device_state import read_state
from deploy.power_meters import find_meter
from deploy.power_nvml import has_card
from deploy.power_recording import energy_of, record_power

pytest.importorskip("pynvml", reason="NVML's module is not installed: pip install nvidia-ml-py")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_card(), reason="no NVIDIA driver on this machine"),
]


def test_a_card_draws_what_a_card_draws() -> None:
    with find_meter(device="gpu") as meter:
        samples = [meter.read() for _ in range(10)]
        with record_power(meter) as recording:
            read_state()
        energy = energy_of(meter, samples, samples, images=10, seconds=1.0)
    assert meter.source == "nvml"
    assert recording.samples
    assert 5 < energy.idle_watts < 1500
    assert energy.joules_per_image_above_idle == 0
    assert energy.num_samples == 10


def test_a_card_tells_its_state() -> None:
    state = read_state()
    assert state.mhz["gpu"] > 0
    assert state.mhz["gpu memory"] > 0
    assert 0 < state.celsius["gpu"] < 120
