# SPDX-License-Identifier: Apache-2.0
"""The platform that vLLM runs on, and its devices by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm_batchllm.doctor.finding import Finding, reason_of
from vllm_batchllm.measure.environment import cpu_model, memory_gib, usable_cores
from vllm_batchllm.plugin.engine_sizes import LARGE_GPU_BYTES

GIB = 2**30
NOT_MEASURED = "no engine of ours has been measured on a GPU yet: hold it against stock before you rely on a gain"


def check_platform() -> Iterator[Finding]:
    """The platform of the installed vLLM."""
    from vllm.platforms import current_platform

    yield from describe(current_platform)


def describe(platform: Any) -> Iterator[Finding]:
    """platform: vLLM's ``current_platform``."""
    if platform.is_cpu():
        text = f"CPU: {cpu_model()}, {usable_cores()} cores, {memory_gib():.0f} GiB of memory"
        yield Finding("ok", "device", text)
    elif platform.is_cuda_alike():
        yield from _gpus(platform)
    elif platform.is_unspecified():
        yield Finding(
            "problem",
            "device",
            "vLLM finds no device here",
            "check the driver (nvidia-smi, rocm-smi), or install vLLM's build for CPUs",
        )
    else:
        text = f"{platform.device_name!r}: the plugin was never tried on this platform"
        yield Finding("note", "device", text, "vLLM's own engine sizes and attention are kept")


def _gpus(platform: Any) -> Iterator[Finding]:
    count = platform.device_count()
    if not count:
        yield Finding(
            "problem",
            "device",
            "vLLM is a build for GPUs and sees none",
            "check the driver (nvidia-smi, rocm-smi) and CUDA_VISIBLE_DEVICES",
        )
    for index in range(count):
        yield _gpu(platform, index)
    if count:
        yield Finding("note", "device", NOT_MEASURED, "docs/gpu.md has the commands")


def _gpu(platform: Any, index: int) -> Finding:
    try:
        name, memory = (
            platform.get_device_name(index),
            platform.get_device_total_memory(index),
        )
        capability = platform.get_device_capability(index)
    except Exception as error:  # noqa: BLE001 - a driver raises whatever it likes
        return Finding("note", "device", f"GPU {index} does not say what it is: {reason_of(error)}")
    arch = "" if capability is None else f", capability {capability.major}.{capability.minor}"
    text = f"GPU {index}: {name}, {memory / GIB:.0f} GiB{arch}"
    if memory < LARGE_GPU_BYTES:
        text += f"; below {LARGE_GPU_BYTES // GIB} GiB vLLM's own sizes of a step are kept"
    return Finding("ok", "device", text)
