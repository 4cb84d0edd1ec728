# SPDX-License-Identifier: Apache-2.0
"""The names by which our scheduler is chosen, and how a choice is recognised."""

from __future__ import annotations

BATCHLLM_SCHEDULER = "vllm_batchllm.create_scheduler"
"""Path of the factory that builds the scheduler fitting the engine's async mode."""

SCHEDULERS: dict[str, str | None] = {"batchllm": BATCHLLM_SCHEDULER, "stock": None}
"""What ``--scheduler`` takes: name -> scheduler_cls."""


def is_ours(scheduler_cls: object) -> bool:
    """Whether a ``scheduler_cls`` (path, class or factory) is one of this package."""
    if isinstance(scheduler_cls, str):
        return scheduler_cls.startswith("vllm_batchllm.")
    return getattr(scheduler_cls, "__module__", "").startswith("vllm_batchllm.")


def known_schedulers() -> str:
    """The names that ``--scheduler`` takes, for messages."""
    return ", ".join(SCHEDULERS)
