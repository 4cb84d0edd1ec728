# SPDX-License-Identifier: Apache-2.0
"""The names by which our scheduler is chosen, and how a choice is recognised."""

from __future__ import annotations

import pkgutil

BATCHLLM_SCHEDULER = "vllm_batchllm.create_scheduler"
"""Path of the factory that builds the scheduler fitting the engine's async mode."""

SCHEDULERS: dict[str, str | None] = {"batchllm": BATCHLLM_SCHEDULER, "stock": None}
"""What ``--scheduler`` takes: name -> scheduler_cls."""


MARK = "serves_prefix_groups"
"""Attribute of our scheduler classes, and so of a user's subclasses of them."""


def is_ours(scheduler_cls: object) -> bool:
    """Whether a ``scheduler_cls`` (path, class or factory) is one of this package, or a subclass."""
    if isinstance(scheduler_cls, str):
        if scheduler_cls.startswith("vllm_batchllm."):
            return True
        try:
            scheduler_cls = pkgutil.resolve_name(scheduler_cls)
        except (ImportError, AttributeError, ValueError):
            return False  # vLLM itself says what is wrong with it
    if getattr(scheduler_cls, "__module__", "").startswith("vllm_batchllm."):
        return True
    return bool(getattr(scheduler_cls, MARK, False))


def known_schedulers() -> str:
    """The names that ``--scheduler`` takes, for messages."""
    return ", ".join(SCHEDULERS)
