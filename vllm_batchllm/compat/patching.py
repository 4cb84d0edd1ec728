# SPDX-License-Identifier: Apache-2.0
"""How we reach into vLLM where it offers no door: names replaced for a while, one method added."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
