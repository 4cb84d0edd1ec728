# SPDX-License-Identifier: Apache-2.0
"""The running server as what answers batch lines: vLLM's own handlers, and the models that it serves now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_batchllm.batch_api.work import LaterServer, Work
from vllm_batchllm.jobs.feed import Window


def work_of(engine_client: Any, state: Any, priority: int, is_ending: Callable[[], bool]) -> Work:
    """What the runner drives on this server.

    Args:
        state: of vLLM's app, filled. priority: of batch lines, where the engine knows priorities.
        is_ending: whether the engine has ended, or does now.
    """
    from vllm_batchllm.jobs.handlers import HandlerServer

    vllm_config = engine_client.vllm_config
    has_priorities = vllm_config.scheduler_config.policy == "priority"
    server = LaterServer(HandlerServer(state), priority if has_priorities else None, is_ending)
    return Work(server, Window.for_engine(vllm_config), lambda: served_models(state))


def served_models(state: Any) -> frozenset[str] | None:
    """Names that a body may give as its model: the base model's and those of loaded adapters.

    None where adapters are loaded when somebody names them.
    """
    models = state.openai_serving_models
    if models.lora_resolvers:
        return None
    bases = {path.name for path in models.base_model_paths}
    return frozenset(bases | set(models.lora_requests))
