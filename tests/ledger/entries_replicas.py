# SPDX-License-Identifier: Apache-2.0
"""``LLM`` over several engines: what it takes over, and what of vLLM's it calls."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

UNTIL_OFFLINE = "vLLM's LLM takes data_parallel_size, and plans a batch over its ranks by prefixes"
OFFLINE = "vllm.entrypoints.common.offline:OfflineInferenceMixin"
POOLING = "vllm.entrypoints.pooling.offline:PoolingOfflineMixin"


def _taken_over(symbol: str, *parameters: str) -> VLLMSymbol:
    return VLLMSymbol(
        symbol,
        why="one call for all engines",
        how="overridden in ReplicatedMethods, with its names; each engine's own is called there",
        until=UNTIL_OFFLINE,
        parameters=parameters,
    )


def _called(symbol: str, why: str, *parameters: str) -> VLLMSymbol:
    return VLLMSymbol(symbol, why=why, how="called", until=UNTIL_OFFLINE, parameters=parameters)


REPLICAS: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.entrypoints.llm:LLM.__init__",
        why="which calls vLLM refuses, and which it lets pass",
        how="data_parallel_size above 1 becomes several engines, but for external_launcher and TPUs",
        until=UNTIL_OFFLINE,
        parameters=("model",),
    ),
    _taken_over(
        "vllm.entrypoints.llm:LLM.enqueue",
        *("prompts", "sampling_params", "lora_request", "priority", "use_tqdm"),
    ),
    _taken_over(
        "vllm.entrypoints.llm:LLM.enqueue_chat",
        *("messages", "sampling_params", "use_tqdm", "lora_request", "priority"),
    ),
    _taken_over("vllm.entrypoints.llm:LLM.wait_for_completion", "output_type", "use_tqdm"),
    _taken_over(
        "vllm.entrypoints.llm:LLM.generate",
        *("prompts", "sampling_params", "use_tqdm", "lora_request", "priority"),
    ),
    _taken_over(
        "vllm.entrypoints.llm:LLM.chat",
        *("messages", "sampling_params", "use_tqdm", "lora_request", "priority"),
    ),
    _taken_over("vllm.entrypoints.llm:LLM.collective_rpc", "method", "timeout", "args", "kwargs"),
    _taken_over("vllm.entrypoints.llm:LLM.apply_model", "func"),
    _taken_over("vllm.entrypoints.llm:LLM.reset_prefix_cache"),
    _taken_over("vllm.entrypoints.llm:LLM.sleep", "level", "mode"),
    _taken_over("vllm.entrypoints.llm:LLM.wake_up", "tags"),
    _taken_over("vllm.entrypoints.llm:LLM.get_metrics"),
    _taken_over("vllm.entrypoints.llm:LLM.get_world_size", "include_dp"),
    _taken_over(f"{POOLING}.encode", "prompts", "pooling_params", "use_tqdm"),
    _taken_over(f"{POOLING}.embed", "prompts", "pooling_params", "use_tqdm"),
    _taken_over(f"{POOLING}.classify", "prompts", "pooling_params", "use_tqdm"),
    _taken_over(f"{POOLING}.score", "data_1", "data_2", "use_tqdm"),
    _called(f"{OFFLINE}._params_to_seq", "parameters of each prompt", "params", "num_requests"),
    _called(f"{OFFLINE}._lora_request_to_seq", "adapters", "lora_request", "num_requests"),
    _called(f"{OFFLINE}._priority_to_seq", "priorities", "priority", "num_requests"),
    _called("vllm.renderers.inputs.preprocess:prompt_to_seq", "what counts as one prompt"),
    _called("vllm.renderers.inputs.preprocess:conversation_to_seq", "what counts as one chat"),
    _called("vllm.tokenizers:cached_tokenizer_from_config", "get_tokenizer", "model_config"),
    _called(
        "vllm.entrypoints.llm:LLM.get_default_sampling_params",
        "parameters where none are given; reads model_config and default_sampling_params",
    ),
)
