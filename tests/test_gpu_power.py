"""Power and state of a real NVIDIA card; skipped where there is none."""

from __future__ import annotations

import time

import pytest
import torch

from deploy.device_state import read_state
from deploy.power_meters import find_meter
from deploy.power_nvml import has_card
from deploy.power_recording import energy_of, record_power

pytest.importorskip("pynvml", reason="NVML's module is not installed: pip install nvidia-ml-py")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not has_card(), reason="no NVIDIA driver on this machine"),
]


def test_a_card_draws_more_when_it_works() -> None:
    """`-s` prints what products of two bfloat16 matrices of 8192 cost."""
    with find_meter(device="gpu") as meter:
        idle = [meter.read() for _ in range(10)]
        matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        count, begun = 0, time.monotonic()
        with record_power(meter) as recording:
            while len(recording.samples) < 20:
                assert time.monotonic() - begun < 60, recording
                for _ in range(20):
                    torch.mm(matrix, matrix)
                torch.cuda.synchronize()
                count += 20
        energy = energy_of(meter, idle, recording.samples, images=count, seconds=time.monotonic() - begun)
    print(energy)
    assert energy.source == "nvml"
    assert 5 < energy.idle_watts < energy.watts[meter.rail] < 1500
    assert 0 < energy.joules_per_image_above_idle < energy.joules_per_image


def test_a_card_tells_its_state() -> None:
    state = read_state()
    assert state.mhz["gpu"] > 0
    assert state.mhz["gpu memory"] > 0
    assert 0 < state.celsius["gpu"] < 120
