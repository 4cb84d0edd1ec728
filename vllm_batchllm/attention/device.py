# SPDX-License-Identifier: Apache-2.0
"""The device at hand, and how vLLM finds our backends on it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, NamedTuple

from vllm_batchllm.attention.choice import BACKENDS
from vllm_batchllm.attention.shape import HEAD_SIZES
from vllm_batchllm.attention.speed_records import RecordKey

CHOSEN = "VLLM_BATCHLLM_SHARED_ATTENTION"
"""Environment variable by which the processes of an engine know which backend was chosen: ``cuda``, ``rocm`` or ``cpu``. vLLM carries
variables of this prefix to workers on other machines, too."""

MIN_TRITON = (3, 2)


class Platform(NamedTuple):
    """name: ``cuda``, ``rocm``, ``cpu`` or another; reasons: why shared attention cannot run here."""

    name: str
    reasons: list[str]


def platform_of() -> Platform:
    """What this process runs on."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        return Platform("cpu", [])
    if current_platform.is_rocm():
        return Platform("rocm", triton_reasons())
    if not current_platform.is_cuda():
        return Platform("other", [f"the platform {current_platform.device_name!r}"])
    return Platform("cuda", [*triton_reasons(), *capability_reasons()])


def capability_reasons() -> list[str]:
    """Why this NVIDIA device has no tiles. CUDA is not touched: the engine's processes may be forked from this one."""
    from vllm.platforms import current_platform

    from vllm_batchllm.attention.tiles import NVIDIA

    capability = current_platform.get_device_capability()
    if capability is not None and capability.major in NVIDIA:
        return []
    shown = "unknown" if capability is None else f"{capability.major}.{capability.minor}"
    return [f"no tiles are shipped for compute capability {shown}"]


def triton_reasons() -> list[str]:
    """Why Triton's kernels cannot be compiled here."""
    if find_spec("triton") is None:
        return ["Triton is not installed"]
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < MIN_TRITON:
        return [f"Triton {triton.__version__}; {'.'.join(map(str, MIN_TRITON))} or newer is needed"]
    return []


def head_size_reasons(head_size: int) -> list[str]:
    """Why heads of this size cannot be served."""
    if head_size in HEAD_SIZES:
        return []
    return [f"heads of {head_size}; served are {', '.join(map(str, HEAD_SIZES))}"]


def cpu_reasons(vllm_config: Any) -> list[str]:
    """Why the CPU's backend would find nothing to share: it reads the layout of keys that vLLM's float32 kernels have."""
    dtype = str(vllm_config.model_config.dtype).removeprefix("torch.")
    cache = vllm_config.cache_config.cache_dtype
    if dtype == "float32" and cache == "auto":
        return []
    return [f"on a CPU float32 alone is served, not dtype {dtype} with kv_cache_dtype {cache!r}"]


def record_key(vllm_config: Any) -> RecordKey:
    """What measurements of this engine hold for."""
    from vllm.platforms import current_platform

    from vllm_batchllm.compat.version import installed_minor

    cache = vllm_config.cache_config.cache_dtype
    kv_type = (
        str(vllm_config.model_config.dtype).removeprefix("torch.") if cache == "auto" else cache
    )
    head_size = vllm_config.model_config.get_head_size()
    return RecordKey(current_platform.get_device_name(), head_size, kv_type, installed_minor())


def somebody_elses_backend() -> str | None:
    """The class that has vLLM's place for a custom backend, if it is not ours."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    custom = AttentionBackendEnum.CUSTOM
    path = custom.get_path() if custom.is_overridden() else None
    return None if path is None or path in BACKENDS.values() else path


def offer_backends(platform: str) -> None:
    """Let vLLM find the chosen backend, in this process and in those that it starts."""
    os.environ[CHOSEN] = platform
    register_chosen()


def register_chosen() -> None:
    """Register the backend that was chosen for this process or for one that started it; else do nothing."""
    platform = os.environ.get(CHOSEN, "")
    if platform not in BACKENDS:
        return
    from vllm.v1.attention import selector
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    place = AttentionBackendEnum.CPU_ATTN if platform == "cpu" else AttentionBackendEnum.CUSTOM
    register_backend(place, BACKENDS[platform])
    # What engines of this process before were given is remembered there.
    selector._cached_get_attn_backend.cache_clear()
