# SPDX-License-Identifier: Apache-2.0
"""What the drop-in ``LLM`` overrides, and what it asks of the engine core."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

OFFLINE = "vllm.entrypoints.common.offline:OfflineInferenceMixin"
UNTIL_BATCH = "vLLM's LLM offers hooks around adding requests and collecting outputs"

UNTIL_RENDER = "vLLM renders a body to token ids without an engine"

LLM: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.build_chat_params",
        why="a planned chat has the tokens that vLLM makes of it",
        how="called on a request made of the fields that change tokens",
        until=UNTIL_RENDER,
        parameters=("default_template", "default_template_content_format"),
    ),
    VLLMSymbol(
        "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
        why="a planned prompt has the tokens that vLLM makes of it",
        how="made of the fields that change tokens, and read",
        until=UNTIL_RENDER,
    ),
    VLLMSymbol(
        "vllm.v1.engine.core:EngineCore.pause_scheduler",
        why="queue the whole batch before the first step",
        how="called as a utility, mode keep",
        until=UNTIL_BATCH,
        parameters=("mode", "clear_cache"),
    ),
    VLLMSymbol(
        "vllm.v1.engine.core:EngineCore.resume_scheduler",
        why="start the batch once it is queued",
        how="called as a utility",
        until=UNTIL_BATCH,
    ),
    VLLMSymbol(
        "vllm.v1.engine.core:EngineCore.is_scheduler_paused",
        why="leave an engine paused that the user had paused",
        how="called as a utility",
        until=UNTIL_BATCH,
    ),
    *(
        VLLMSymbol(
            f"{OFFLINE}.{name}",
            why=why,
            how="overridden; calls super with everything as it came",
            until=UNTIL_BATCH,
        )
        for name, why in (
            ("_add_completion_requests", "hold the engine while a batch is queued"),
            ("_add_chat_requests", "hold the engine while a batch is queued"),
            ("_run_completion", "know that a call waits for its outputs, so look-ahead may apply"),
            ("_run_chat", "know that a call waits for its outputs, so look-ahead may apply"),
        )
    ),
    VLLMSymbol(
        f"{OFFLINE}._resolve_mm_lora",
        why="prompts with images or sound get the adapter that vLLM gives them",
        how="called for each prompt, as vLLM's own loop does, which ours replaces",
        until=UNTIL_BATCH,
        parameters=("prompt", "lora_request"),
    ),
    VLLMSymbol(
        f"{OFFLINE}._preprocess_cmpl_one",
        why="a prompt that cannot be rendered fails alone",
        how="overridden; calls super and catches",
        until=UNTIL_BATCH,
        parameters=("prompt",),
    ),
    VLLMSymbol(
        f"{OFFLINE}._preprocess_chat_one",
        why="a conversation that cannot be rendered fails alone",
        how="overridden; calls super and catches",
        until=UNTIL_BATCH,
        parameters=("conversation",),
    ),
    VLLMSymbol(
        f"{OFFLINE}._render_and_add_requests",
        why="duplicates, look-ahead and failed requests",
        how="overridden; adds through _add_request",
        until=UNTIL_BATCH,
        parameters=("prompts", "params", "lora_requests", "priorities"),
    ),
    VLLMSymbol(
        f"{OFFLINE}._add_request",
        why="add one request with a counted id",
        how="called",
        until=UNTIL_BATCH,
        parameters=("prompt", "params", "lora_request", "priority"),
    ),
    VLLMSymbol(
        f"{OFFLINE}._run_engine",
        why="feed the look-ahead, show savings, answer duplicates",
        how="overridden with a loop over LLMEngine.step",
        until=UNTIL_BATCH,
        parameters=("output_type", "use_tqdm"),
    ),
    *(
        VLLMSymbol(
            f"vllm.v1.engine.llm_engine:LLMEngine.{name}",
            why="the loop that hands out outputs as they come",
            how="called",
            until=UNTIL_BATCH,
        )
        for name in ("step", "abort_request")
    ),
    VLLMSymbol(
        "vllm.v1.engine.core_client:SyncMPClient.call_utility",
        why="the way to the engine core in another process",
        how="called",
        until=UNTIL_BATCH,
        parameters=("method",),
    ),
    VLLMSymbol(
        "vllm.v1.engine.output_processor:OutputProcessor.abort_requests",
        why="a request that fails after it was registered is taken out again",
        how="called through LLMEngine.abort_request; `external_req_ids`, `request_states` and "
        "`parent_requests` say what is left of it (tests/engine/test_llm.py)",
        until=UNTIL_BATCH,
        parameters=("request_ids", "internal"),
    ),
)
