# SPDX-License-Identifier: Apache-2.0
"""Devices that are not here, as far as vLLM and we ask them before anything runs."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER

GIB = 2**30


class FakePlatform:
    """What vLLM and we ask a device before anything runs on it."""

    def __init__(self, kind: str, name: str = "", memory_gib: int = 0, family: int = 90) -> None:
        self.kind, self.name, self.memory_gib, self.family = kind, name, memory_gib, family

    def is_cuda_alike(self) -> bool:
        return self.kind in ("cuda", "rocm")

    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    def is_tpu(self) -> bool:
        return self.kind == "tpu"

    def is_device_capability_family(self, capability: int) -> bool:
        return self.family == capability

    def is_device_capability(self, capability: int) -> bool:
        return False  # vLLM 0.33 asks for one single GPU (12.1), which is none of these

    def get_device_total_memory(self) -> int:
        return self.memory_gib * GIB

    def get_device_name(self) -> str:
        return self.name


DEVICES = {
    "a100": FakePlatform("cuda", "NVIDIA A100-SXM4-80GB", 80, family=80),
    "h100": FakePlatform("cuda", "NVIDIA H100 80GB HBM3", 80),
    "b200": FakePlatform("cuda", "NVIDIA B200", 180, family=100),
    "l4": FakePlatform("cuda", "NVIDIA L4", 24),
    "l40s": FakePlatform("cuda", "NVIDIA L40S", 48),
    "mi210": FakePlatform("rocm", "AMD Instinct MI210", 64),
    "cpu": FakePlatform("cpu", "x86", 24),
    "xpu": FakePlatform("xpu", "Intel GPU", 48),
}


def ours(llama: str, **given: Any) -> EngineArgs:
    """Engine arguments that choose our scheduler."""
    return EngineArgs(
        model=llama, skip_tokenizer_init=True, scheduler_cls=BATCHLLM_SCHEDULER, **given
    )


def sizes_of(config: VllmConfig) -> tuple[int, int, int]:
    """max_num_seqs, max_num_batched_tokens and block_size."""
    scheduler = config.scheduler_config
    return (
        scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens,
        config.cache_config.block_size,
    )
