# SPDX-License-Identifier: Apache-2.0
"""Calls to the engine core, wherever it lives: in this process or in its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def call_core(llm_engine: Any, method: str, *args: Any) -> Any:
    """Call ``method`` of the engine core and return its result."""
    client = llm_engine.engine_core
    if hasattr(client, "call_utility"):
        return client.call_utility(method, *args)
    return getattr(client.engine_core, method)(*args)


def withdraw(llm_engine: Any, request_id: str) -> None:
    """Take out what is left of a request that failed while it was added; nothing if nothing is.

    vLLM's front end registers a request, and each sample of it, before the engine core gets it,
    and would wait for its output for ever.

    request_id: the caller's, which names all samples.
    """
    processor = llm_engine.output_processor
    own_ids = list(processor.external_req_ids.get(request_id, ()))
    parents = [processor.request_states[own_id].parent_req for own_id in own_ids]
    llm_engine.abort_request(own_ids, internal=True)
    for parent in filter(None, parents):
        processor.parent_requests.pop(parent.request_id, None)


def runs_beside_us(llm_engine: Any) -> bool:
    """Whether the engine core steps by itself, in another process."""
    return hasattr(llm_engine.engine_core, "call_utility")


@contextmanager
def held(llm_engine: Any) -> Iterator[Callable[[], None]]:
    """Nothing is scheduled inside the block, so that a batch can be queued whole.

    Yields what lets the engine begin before the block ends. In one process nothing steps until asked to. An
    engine that was paused before stays paused.
    """
    if not runs_beside_us(llm_engine) or call_core(llm_engine, "is_scheduler_paused"):
        yield lambda: None
        return
    call_core(llm_engine, "pause_scheduler", "keep", False)
    is_held = True

    def release() -> None:
        nonlocal is_held
        if is_held:
            is_held = False
            call_core(llm_engine, "resume_scheduler")

    try:
        yield release
    finally:
        release()
