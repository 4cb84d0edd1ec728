# SPDX-License-Identifier: Apache-2.0
"""What reading shared KV once a step could bring on a device, between two bounds, without running its steps.

A step of decodes reads the weights, and the KV of all who run; prompts are computed at a share of the peak. `vllm-batchllm simulate
--shared-attention` does the same step by step.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_batchllm.hardware.devices import Device
from vllm_batchllm.hardware.models import ModelShape

FLOPS_REACHED = 0.6
KERNEL_SPEED = 0.62
"""At which the kernel reads KV, over FlashAttention's: the least that has been measured (`simulate/shared_kv.py`)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a batch makes a device do, in tokens. computed: of prompts. outputs: of all requests.

    running: requests at once. kv_read: KV tokens that decodes read in all. read_ratio: of them, what neighbours have read.
    """

    computed: float
    outputs: float
    running: float
    kv_read: float
    read_ratio: float


def attention_gain(load: Load, device: Device, model: ModelShape) -> tuple[float, float]:
    """Speed with shared attention over without it: where stock attention finds what neighbours have read in the device's
    cache and the kernel is slow, and where it does not and the kernel is as fast."""
    once = load.kv_read * (1 - load.read_ratio)
    shared = load.kv_read * load.read_ratio
    slow = once + shared / max(load.running, 1.0) / KERNEL_SPEED
    cached = max(once, load.kv_read / device.cache_gain)
    least = _time_s(load, cached, device, model) / _time_s(load, slow, device, model)
    most = _time_s(load, load.kv_read, device, model) / _time_s(load, once, device, model)
    return max(least, 1.0), max(most, 1.0)


def _time_s(load: Load, kv_read: float, device: Device, model: ModelShape) -> float:
    prompts = 2.0 * model.layer_weights * load.computed / (FLOPS_REACHED * device.flops)
    steps = load.outputs / max(load.running, 1.0)
    weights = steps * (model.layer_bytes + model.head_bytes)
    return prompts + (weights + kv_read * model.kv_bytes_per_token) / device.bandwidth
