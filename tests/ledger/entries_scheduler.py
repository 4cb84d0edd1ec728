# SPDX-License-Identifier: Apache-2.0
"""The scheduler and its KV cache manager: order and number of those who run."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
MANAGER = "vllm.v1.core.kv_cache_manager:KVCacheManager"
UNTIL_ADMISSION = "vLLM offers a hook that may refuse an admission"
UNTIL_START = "vLLM has a start for prompt_logprobs and reads the cache before it"
LOOKUP = (
    "overridden; calls super with the request as one that ends behind what may be read, and from 0.33 on "
    "with the smaller of two longest hits"
)
UNTIL_PUBLIC = "vLLM has a public scheduler interface"

SCHEDULING: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.v1.core.sched.request_queue:RequestQueue",
        why="order of admission",
        how="implemented by PrefixGroupQueue, and by HoldingQueue in front of it or of vLLM's",
        until=UNTIL_PUBLIC,
    ),
    VLLMSymbol(
        SCHEDULER,
        why="base class",
        how="subclassed; `waiting` is replaced after construction",
        until=UNTIL_PUBLIC,
        parameters=("vllm_config", "kv_cache_config", "block_size", "hash_block_size"),
    ),
    VLLMSymbol(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        why="base class when async scheduling is on",
        how="subclassed",
        until=UNTIL_PUBLIC,
    ),
    VLLMSymbol(
        f"{SCHEDULER}.schedule",
        why="count steps, tokens and admissions",
        how="overridden; calls super and reads the output; where prefills are spread, "
        "`max_num_scheduled_tokens`, which it reads in every step, is set before, from "
        "`num_spec_tokens` among others (tests/scheduler/test_spread_prefills.py)",
        until="SchedulerStats carries these counters to LLM, and steps have a token budget hook",
        parameters=("throttle_prefills",),
    ),
    VLLMSymbol(
        f"{SCHEDULER}.update_from_output",
        why="how long a step took, for targets of latency; it ends failed requests, and gives streaming sessions back",
        how="overridden; calls super, then notes the time where an option asks for it",
        until="vLLM tells its scheduler how long steps take",
        parameters=("scheduler_output", "model_runner_output"),
    ),
    VLLMSymbol(
        "vllm.v1.core.block_pool:BlockPool.get_cached_block",
        why="how much of a prompt is likely to be cached, before it starts",
        how="called with the first KV cache group, by binary search",
        until=UNTIL_PUBLIC,
        parameters=("block_hash", "kv_cache_group_ids"),
    ),
    VLLMSymbol(
        "vllm.utils.import_utils:import_pynvml",
        why="the power of a device, for option power_weight",
        how="called once, where the user does not give it",
        until="vLLM tells the power of a device",
    ),
    VLLMSymbol(
        f"{SCHEDULER}._preempt_request",
        why="count preemptions and the prompt tokens they leave uncomputed",
        how="overridden; calls super",
        until="SchedulerStats carries these counters to LLM",
        parameters=("request", "timestamp", "drop_stale_output"),
    ),
    VLLMSymbol(
        f"{SCHEDULER}._try_schedule_encoder_inputs",
        why="from 0.33 on a step looks at everybody who waits once images no longer fit the encoder",
        how="overridden; calls super and tells the queue whether the answer's second figure, the tokens to be "
        "computed, is 0",
        until="vLLM ends the admissions of a step where the encoder is spent",
        parameters=("request", "num_computed_tokens", "num_new_tokens", "encoder_compute_budget"),
    ),
    VLLMSymbol(
        f"{SCHEDULER}.add_request",
        why="a request that can never be served must not block the queue",
        how="overridden; calls super, then puts such a request into `grammar_compile_error_reqs`, "
        "which vLLM ends with an error",
        until="vLLM ends requests that outgrow the KV cache itself",
        parameters=("request",),
    ),
    VLLMSymbol(
        "vllm.v1.core.sched.scheduler:KVCacheManager",
        why="have the scheduler build a manager that asks before it admits",
        how="the name is replaced while our scheduler is being built, and put back",
        until=UNTIL_ADMISSION,
    ),
    VLLMSymbol(
        f"{MANAGER}.allocate_slots",
        why="the one place where an admission can be refused without copying schedule()",
        how="overridden; calls super unless the admission refuses a waiting request",
        until=UNTIL_ADMISSION,
        parameters=("request", "has_scheduled_reqs"),
    ),
    *(
        VLLMSymbol(
            f"{MANAGER}.{name}",
            why="know that a request has finished or was preempted",
            how="overridden; calls super",
            until=UNTIL_ADMISSION,
            parameters=("request",),
        )
        for name in ("free", "pop_blocks_for_free")
    ),
    *(
        VLLMSymbol(
            f"{MANAGER}.{name}",
            why="a request that wants log-probabilities from a start on may find what lies before it",
            how=how,
            until=UNTIL_START,
            parameters=("request",),
        )
        for name, how in (
            ("prefix_cache_lookup_enabled", "overridden; calls super for requests without a start"),
            ("get_computed_blocks", LOOKUP),
            ("get_computed_blocks_for_connector", LOOKUP),
        )
    ),
    *(
        VLLMSymbol(
            f"vllm.v1.kv_cache_interface:{name}",
            why="know which tokens the layers of a request keep, and so its blocks at any length",
            how="compared with the types of KV cache groups; their sizes are read",
            until=UNTIL_ADMISSION,
        )
        for name in (
            "ChunkedLocalAttentionSpec",
            "FullAttentionSpec",
            "KVCacheGroupRole",
            "MLAAttentionSpec",
            "MambaSpec",
            "SinkFullAttentionSpec",
            "SlidingWindowMLASpec",
            "SlidingWindowSpec",
        )
    ),
    *(
        VLLMSymbol(
            f"vllm.config:VllmConfig.{name}",
            why="blocks that a running request has ahead of its tokens, for drafts",
            how="read",
            until=UNTIL_ADMISSION,
        )
        for name in ("num_lookahead_tokens", "num_speculative_tokens")
    ),
    VLLMSymbol(
        "vllm.v1.core.block_pool:BlockPool.get_num_free_blocks",
        why="blocks that requests can hold, and hold",
        how="called",
        until=UNTIL_ADMISSION,
    ),
    VLLMSymbol(
        f"{SCHEDULER}._update_request_as_session",
        why="a streaming session that outgrows the KV cache must not block the queue",
        how="overridden; calls super, then ends such a session as above",
        until="vLLM ends requests that outgrow the KV cache itself",
        parameters=("session", "update"),
    ),
    VLLMSymbol(
        "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator.get_num_blocks_to_allocate",
        why="how long a request can be that fits the empty cache, whatever the layers are",
        how="called once, as vLLM calls it before it admits",
        until="vLLM ends requests that outgrow the KV cache itself",
        parameters=(
            "request_id",
            "num_tokens",
            "new_computed_blocks",
            "num_encoder_tokens",
            "total_computed_tokens",
            "num_local_computed_tokens",
            "num_tokens_main_model",
            "apply_admission_cap",
            "prefill_end",
        ),
    ),
    *(
        VLLMSymbol(
            f"{SCHEDULER}.{name}",
            why=why,
            how="not overridden; our queue, and requests that end with an error, count on it",
            until=UNTIL_PUBLIC,
        )
        for name, why in (
            ("finish_requests", "takes aborted requests out of the queues, many in one call"),
            ("_handle_stopped_request", "a streaming session comes back to the queue"),
            ("reset_prefix_cache", "running requests come back to the queue"),
        )
    ),
    VLLMSymbol(
        "vllm.outputs:RequestError",
        why="the reason reaches the client of a request that can never be served",
        how="built by compat.end_with_error",
        until="vLLM ends requests that outgrow the KV cache itself",
        parameters=("code", "message"),
    ),
    *(
        VLLMSymbol(
            f"vllm.v1.request:{name}",
            why="what the order of admission and the admission know of a request",
            how="read",
            until=UNTIL_PUBLIC,
        )
        for name in ("Request", "RequestStatus", "StreamingUpdate")
    ),
)
