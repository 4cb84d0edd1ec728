# SPDX-License-Identifier: Apache-2.0
"""What engines on GPUs do, on a CPU: model runner V2, and steps put together ahead of their outputs.

V2's kernels are Triton's, and Triton's interpreter runs them on any machine; but vLLM's CPU build
looks for a backend of Triton named ``cpu`` first, and its platform switches asynchronous
scheduling off. For a process of its own.
"""

from __future__ import annotations

import os
from types import SimpleNamespace


def run_triton_in_its_interpreter() -> None:
    """Let vLLM use Triton's kernels here; to be called before vLLM is imported.

    Raises:
        RuntimeError: Triton would compile them: ``TRITON_INTERPRET=1`` is read when it is imported.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("set TRITON_INTERPRET=1 before the process starts")
    import triton.backends

    nowhere = SimpleNamespace(is_active=lambda: False)
    triton.backends.backends.setdefault("cpu", SimpleNamespace(compiler=None, driver=nowhere))


def allow_async_scheduling() -> None:
    """Let the CPU platform leave ``async_scheduling`` as the configuration has it."""
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config.__func__

    def and_leave_it(cls: type[CpuPlatform], config: object) -> None:
        wanted = config.scheduler_config.async_scheduling  # type: ignore[attr-defined]
        update(cls, config)
        config.scheduler_config.async_scheduling = wanted  # type: ignore[attr-defined]

    CpuPlatform.check_and_update_config = classmethod(and_leave_it)
