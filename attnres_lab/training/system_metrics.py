"""How busy the run keeps its device: the peak to compare its FLOP/s with, and system metrics of
what it has leased, not of the whole machine.
"""

from __future__ import annotations

import contextlib
import time

import psutil
import torch

SECONDS = 10.0  # between samples

#: Dense bf16 FLOP/s by a part of the device's name, from NVIDIA's data sheets. Lightning's table
#: has those with sparsity for some of them.
PEAKS = {
    "B200": 2250e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835.5e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4 ": 121e12,
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of ``device`` in Lightning's ``precision``; None where it is not known, as on
    CPUs.
    """
    if device.type != "cuda" or not precision.startswith("bf16"):
        return None
    name = torch.cuda.get_device_name(device) + " "
    return next((peak for part, peak in PEAKS.items() if part in name), None)


class SystemMetrics:
    """Samples this process and its device, at most every ``SECONDS``."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._process, self._due = device, psutil.Process(), 0.0
        self._process.cpu_percent()  # the next call says what was used since this one

    def sample(self) -> dict[str, float]:
        """Metrics by name: per cent of one core, bytes, per cent, watts; nothing between the
        samples.
        """
        if time.monotonic() < self._due:
            return {}
        self._due = time.monotonic() + SECONDS
        values = {
            "system/cpu_percent": self._process.cpu_percent(),
            "system/memory_bytes": float(self._process.memory_info().rss),
        }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            values["system/device_memory_bytes"] = float(total - free)
            # no NVML, or a device without that counter: then there is no such metric
            with contextlib.suppress(Exception):
                values["system/device_percent"] = float(torch.cuda.utilization(self.device))
                values["system/device_watts"] = torch.cuda.power_draw(self.device) / 1000
        return values
