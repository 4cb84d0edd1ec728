# SPDX-License-Identifier: Apache-2.0
"""What a figure depends on besides the code: versions and hardware."""

from __future__ import annotations

import os
import platform
from importlib import import_module, metadata
from pathlib import Path


def describe_environment() -> dict[str, str]:
    """Versions of what matters and the hardware, as short texts."""
    found = {
        "CPU": f"{cpu_model()}, {usable_cores()} of {os.cpu_count()} cores",
        "memory": f"{memory_gib():.0f} GiB",
        "Python": platform.python_version(),
        "vllm": _module_version("vllm"),
        "torch": _module_version("torch"),
        "vllm_batchllm": _own_version(),
    }
    gpus = _gpus()
    return {"GPU": gpus, **found} if gpus else found


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float:
    """Physical memory of the machine."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError, AttributeError):
        return float("nan")


def _module_version(name: str) -> str:
    try:
        return str(import_module(name).__version__)
    except (ImportError, AttributeError):
        return "not installed"


def _own_version() -> str:
    try:
        return metadata.version("vllm-batchllm")
    except metadata.PackageNotFoundError:
        return "not installed"


def _gpus() -> str:
    try:
        import torch
    except ImportError:
        return ""
    if not torch.cuda.is_available():
        return ""
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)
