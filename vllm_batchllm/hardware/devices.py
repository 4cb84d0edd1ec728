# SPDX-License-Identifier: Apache-2.0
"""Devices by name: what their data sheets say, and vLLM's default sizes of a step on each."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from vllm_batchllm.errors import UsageError, unknown_name

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator.

    memory_bytes: of the device. flops: peak of dense 16-bit matrix products, 1/s. bandwidth:
    of its memory, bytes/s. link_bandwidth: to its neighbours, bytes/s in one direction.
    max_num_seqs, max_num_batched_tokens: what vLLM 0.32 and 0.33 take for its `LLM` class there.
    source: where the figures are from. cache_gain: how much faster than from memory attention reads KV that neighbours
    have just read, at best; 1 where nothing is known. idle_w, busy_w: power of the device with nothing to do, and at the limit
    of its board, watts; None where not known. power_source: where those are from.
    """

    name: str
    memory_bytes: float
    flops: float
    bandwidth: float
    link_bandwidth: float
    max_num_seqs: int
    max_num_batched_tokens: int
    source: str
    cache_gain: float = 1.0
    idle_w: float | None = None
    busy_w: float | None = None
    power_source: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or isinstance(value, str):
                continue
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{field.name} of device {self.name!r} must be above 0: {value}")


MEASURED_H100_CACHE_GAIN = 6.9 / 3.0
"""FlashAttention 3 over 16,000 tokens shared by 16 neighbours, TB/s, over the same with nothing shared
(benchmarks/results/gpu)."""

ASSUMED_A100_CACHE_GAIN = 2.0
"""Not measured: of the order that its second-level cache has in published microbenchmarks."""

IDLE_ASSUMED = (
    "idle: assumed, of the order that idle boards are reported to draw; data sheets state none"
)

_TB, _TFLOPS, _GB = 1e12, 1e12, 1e9
DEVICES = {
    device.name: device
    for device in (
        Device(
            name="A100-80GB",
            memory_bytes=80 * GIB,
            flops=312 * _TFLOPS,
            bandwidth=2.039 * _TB,
            link_bandwidth=300 * _GB,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            source="NVIDIA A100 SXM data sheet",
            cache_gain=ASSUMED_A100_CACHE_GAIN,
            idle_w=55,
            busy_w=400,
            power_source=f"busy: power limit of the NVIDIA A100 SXM data sheet; {IDLE_ASSUMED}",
        ),
        Device(
            name="H100-80GB",
            memory_bytes=80 * GIB,
            flops=989 * _TFLOPS,
            bandwidth=3.35 * _TB,
            link_bandwidth=450 * _GB,
            max_num_seqs=1024,
            max_num_batched_tokens=16384,
            source="NVIDIA H100 SXM data sheet",
            cache_gain=MEASURED_H100_CACHE_GAIN,
            idle_w=70,
            busy_w=700,
            power_source=f"busy: power limit of the NVIDIA H100 SXM data sheet; {IDLE_ASSUMED}",
        ),
        Device(
            name="H200",
            memory_bytes=141 * _GB,
            flops=989 * _TFLOPS,
            bandwidth=4.8 * _TB,
            link_bandwidth=450 * _GB,
            max_num_seqs=1024,
            max_num_batched_tokens=16384,
            source="NVIDIA H200 SXM data sheet",
            cache_gain=MEASURED_H100_CACHE_GAIN * 3.35 / 4.8,  # the same cache beside faster memory
            idle_w=75,
            busy_w=700,
            power_source=f"busy: power limit of the NVIDIA H200 SXM data sheet; {IDLE_ASSUMED}",
        ),
        Device(
            name="MI250",
            memory_bytes=64 * GIB,
            flops=181 * _TFLOPS,
            bandwidth=1.6 * _TB,
            link_bandwidth=50 * _GB,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
            source="AMD Instinct MI250 data sheet, one of its two dies (one device to vLLM)",
            idle_w=45,
            busy_w=250,
            power_source=f"busy: half of the 500 W that the AMD Instinct MI250 data sheet states for both dies (560 W peak); {IDLE_ASSUMED}",
        ),
    )
}
CPU = "cpu"
"""The machine at hand: its costs are measured (`calibration.py`), not taken from a data sheet."""


def find_device(name: str) -> Device:
    """The device of that name, whatever its case.

    Raises:
        UsageError: unknown; the known ones are listed.
    """
    for known, device in DEVICES.items():
        if known.lower() == name.lower():
            return device
    raise unknown_name("device", name, [*DEVICES, CPU])
