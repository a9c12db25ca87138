"""Utilisation and system metrics: of the leased device, at a bounded cost, nothing invented."""

from __future__ import annotations

import pytest
import torch

from attnres_lab.training import system_metrics
from attnres_lab.training.system_metrics import SystemMetrics, peak_flops

CUDA = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        # NVIDIA's data sheet: 1,979 TFLOP/s "with sparsity", half of it dense
        (
            "NVIDIA H200",
            989.4e12,
        ),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_data_sheet_or_none(monkeypatch, name, peak) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, "bf16-mixed") == peak
    assert peak_flops(CUDA, "32-true") is None
    assert peak_flops(torch.device("cpu"), "bf16-mixed") is None


def test_only_the_leased_device_is_read(monkeypatch) -> None:
    """Every question to the driver names the run's own device."""
    asked = []
    answers = {"mem_get_info": (3, 10), "utilization": 87, "power_draw": 350_000}
    for name, answer in answers.items():
        monkeypatch.setattr(
            torch.cuda, name, lambda device, answer=answer: asked.append(device) or answer
        )
    sample = SystemMetrics(CUDA).sample()
    assert asked == [CUDA] * 3
    assert {key: value for key, value in sample.items() if "device" in key} == {
        "system/device_memory_bytes": 7.0,
        "system/device_percent": 87.0,
        "system/device_watts": 350.0,
    }
    assert sample["system/memory_bytes"] > 1e7


def test_samples_are_taken_every_ten_seconds(monkeypatch) -> None:
    """However often rows are logged; a device without a counter has no such metric."""
    clock = [100.0]
    monkeypatch.setattr(system_metrics.time, "monotonic", lambda: clock[0])
    meter = SystemMetrics(torch.device("cpu"))
    taken = 0
    for _ in range(100):
        clock[0] += 0.5
        sample = meter.sample()
        taken += bool(sample)
        assert not sample or set(sample) == {"system/cpu_percent", "system/memory_bytes"}
    assert taken == 5
