# SPDX-License-Identifier: Apache-2.0
"""What becomes of each public name of ``LLM`` where several engines stand behind it. A test sees that none is missing."""

from __future__ import annotations

import enum


class Way(enum.Enum):
    """How a name is served."""

    SPLIT = "each request by one of the engines"
    BROADCAST = "by all engines"
    HERE = "in the caller's process"
    REFUSED = "not at all"


WAYS: dict[str, Way] = {
    "generate": Way.SPLIT,
    "chat": Way.SPLIT,
    "enqueue": Way.SPLIT,
    "enqueue_chat": Way.SPLIT,
    "wait_for_completion": Way.SPLIT,
    "loglikelihood": Way.SPLIT,
    "loglikelihood_rolling": Way.SPLIT,
    "beam_search": Way.SPLIT,
    "encode": Way.SPLIT,
    "embed": Way.SPLIT,
    "classify": Way.SPLIT,
    "score": Way.SPLIT,
    "collective_rpc": Way.BROADCAST,
    "apply_model": Way.BROADCAST,
    "start_profile": Way.BROADCAST,
    "stop_profile": Way.BROADCAST,
    "reset_prefix_cache": Way.BROADCAST,
    "reset_mm_cache": Way.BROADCAST,
    "sleep": Way.BROADCAST,
    "wake_up": Way.BROADCAST,
    "release_kv_cache_memory": Way.BROADCAST,
    "get_metrics": Way.BROADCAST,
    "report": Way.HERE,
    "get_tokenizer": Way.HERE,
    "get_default_sampling_params": Way.HERE,
    "get_world_size": Way.HERE,
    "model_config": Way.HERE,
    "runner_type": Way.HERE,
    "chat_template": Way.HERE,
    "default_sampling_params": Way.HERE,
    "batchllm_config": Way.HERE,
    "from_engine_args": Way.HERE,
    "llm_engine": Way.REFUSED,
    "engine_class": Way.REFUSED,
    "request_counter": Way.REFUSED,
    "renderer": Way.REFUSED,
    "input_processor": Way.REFUSED,
    "supported_tasks": Way.HERE,
    "init_weight_transfer_engine": Way.REFUSED,
    "shutdown_weight_transfer_engine": Way.REFUSED,
    "start_weight_update": Way.REFUSED,
    "start_draft_weight_update": Way.REFUSED,
    "update_weights": Way.REFUSED,
    "finish_weight_update": Way.REFUSED,
    "update_weight_version": Way.REFUSED,
    "get_weight_version": Way.REFUSED,
}


class NotWithReplicasError(AttributeError):
    """A name of ``LLM`` that means one engine; says what to do instead."""

    def __init__(self, name: str, num_replicas: int) -> None:
        super().__init__(
            f"LLM.{name} belongs to one engine, and data_parallel_size={num_replicas} means {num_replicas} of them; "
            "use data_parallel_size=1 for it, or collective_rpc, which asks the workers of all"
        )
