# SPDX-License-Identifier: Apache-2.0
"""What vLLM's objects hold: attributes that no signature shows, with their types."""

from __future__ import annotations

from vllm_symbol import VLLMAttribute

UNTIL_PUBLIC = "vLLM has a public scheduler interface"
UNTIL_POOL = "vLLM lets a scheduler choose its block pool and its order of eviction"
UNTIL_ADMISSION = "vLLM offers a hook that may refuse an admission"
UNTIL_ENDED = "vLLM ends requests that outgrow the KV cache itself"
QUEUE = "vllm.v1.core.sched.request_queue:RequestQueue"
UTILS = "vllm.v1.core.kv_cache_utils"
POOL = "scheduler.kv_cache_manager.block_pool"
INT = "builtins:int"

FAILED: tuple[VLLMAttribute, ...] = (
    VLLMAttribute(
        "scheduler.grammar_compile_error_reqs",
        "builtins:set",
        why="requests that vLLM ends with an error in its next update",
        how="an id is added by compat.end_with_error",
        until=UNTIL_ENDED,
        below="0.33",
    ),
    VLLMAttribute(
        "scheduler.grammar_compile_error_reqs",
        "builtins:dict",
        why="requests that vLLM ends with an error in its next update",
        how="an id and its error are added by compat.end_with_error",
        until=UNTIL_ENDED,
        since="0.33",
    ),
)

OF_SCHEDULER: tuple[VLLMAttribute, ...] = tuple(
    VLLMAttribute(f"scheduler.{path}", type, why=why, how=how, until=UNTIL_PUBLIC)
    for path, type, why, how in (
        ("waiting", QUEUE, "order of admission", "replaced after construction"),
        ("kv_holding_waiting", QUEUE, "who waits with blocks goes first", "read"),
        (
            "prefill_capacity_bound",
            "builtins:bool",
            "a slot or a pace is no capacity",
            "set to False after a step",
        ),
        ("lora_config", "builtins:object", "adapters that a step can hold", "read"),
        (
            "running",
            "builtins:list",
            "who runs",
            "read; replaced for a step in which prompts of batch requests pause, and put back behind it",
        ),
        ("requests", "builtins:dict", "a request by its id", "read"),
        ("policy", "vllm.v1.core.sched.request_queue:SchedulingPolicy", "priorities", "read"),
        ("max_num_scheduled_tokens", INT, "tokens of a step", "set before each step"),
        ("max_num_running_reqs", INT, "requests at once", "read"),
        (
            "max_num_active_reqs",
            INT,
            "who may start beside decodes, with target_tbt_ms or target_ttft_ms",
            "set before each step",
        ),
        (
            "need_mamba_block_aligned_split",
            "builtins:bool",
            "no step is smaller than a prompt's least progress",
            "read",
        ),
        ("num_spec_tokens", INT, "tokens of a decode", "read"),
        ("block_size", INT, "blocks of a request", "read"),
        ("hash_block_size", INT, "tokens of a hash", "read"),
        ("max_model_len", INT, "longest output", "read"),
        ("kv_cache_manager", "vllm.v1.core.kv_cache_manager:KVCacheManager", "the gate", "read"),
    )
)

OF_MANAGER: tuple[VLLMAttribute, ...] = tuple(
    VLLMAttribute(f"scheduler.kv_cache_manager.{path}", type, why=why, how="read", until=until)
    for path, type, why, until in (
        (
            "coordinator",
            "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator",
            "blocks of a request of any length",
            UNTIL_ENDED,
        ),
        (
            "empty_kv_cache_blocks",
            "vllm.v1.core.kv_cache_manager:KVCacheBlocks",
            "a request that has no block yet",
            UNTIL_ENDED,
        ),
        ("block_pool", "vllm.v1.core.block_pool:BlockPool", "free blocks", UNTIL_POOL),
        (
            "watermark_blocks",
            INT,
            "blocks kept free where lengths are unknown, set before each start",
            UNTIL_ADMISSION,
        ),
        ("max_model_len", INT, "longest output", UNTIL_ADMISSION),
    )
)

OF_POOL: tuple[VLLMAttribute, ...] = tuple(
    VLLMAttribute(f"{POOL}.{path}", type, why=why, how=how, until=UNTIL_POOL)
    for path, type, why, how in (
        ("blocks", "builtins:list", "a block by its id", "read"),
        ("num_gpu_blocks", INT, "capacity", "read"),
        ("hash_block_size", INT, "hashes of a block", "read"),
        (
            "free_block_queue",
            f"{UTILS}:FreeKVCacheBlockQueue",
            "order of eviction",
            "replaced after construction",
        ),
        ("free_block_queue.num_free_blocks", INT, "free blocks", "kept right"),
        ("free_block_queue.fake_free_list_head", f"{UTILS}:KVCacheBlock", "end of a list", "read"),
        ("free_block_queue.fake_free_list_tail", f"{UTILS}:KVCacheBlock", "end of a list", "read"),
        (
            "cached_block_hash_to_block",
            "vllm.v1.core.block_pool:BlockHashToBlockMap",
            "the copy of a block that a look-up hits",
            "read",
        ),
    )
)

OF_REQUEST: tuple[VLLMAttribute, ...] = tuple(
    VLLMAttribute(f"request.{path}", type, why=why, how="read", until=UNTIL_PUBLIC)
    for path, type, why in (
        ("block_hashes", "builtins:list", "place in the forest; it only grows"),
        ("status", "vllm.v1.request:RequestStatus", "who runs, waits, has ended"),
        ("sampling_params", "vllm:SamplingParams", "what can end it, and its hint"),
        ("arrival_time", "builtins:float", "order of arrival"),
        ("lora_request", "builtins:object", "whose slot it needs"),
        ("is_prefill_chunk", "builtins:bool", "whether the last prompts are being computed"),
        ("priority", INT, "priorities"),
        ("max_tokens", INT, "longest output"),
        ("num_tokens", INT, "tokens so far"),
        ("num_prompt_tokens", INT, "tokens of its prompt"),
        ("num_output_tokens", INT, "lengths are learnt"),
        ("num_computed_tokens", INT, "tokens with KV"),
        ("num_output_placeholders", INT, "tokens on their way, in asynchronous scheduling"),
        ("num_preemptions", INT, "whether it has run before"),
        ("skip_reading_prefix_cache", "builtins:bool", "whether it can share"),
        ("resumable", "builtins:bool", "streaming sessions share nothing"),
    )
)

OF_BLOCK: tuple[VLLMAttribute, ...] = tuple(
    VLLMAttribute(f"block.{path}", type, why=why, how="read", until=UNTIL_POOL)
    for path, type, why in (
        ("block_id", INT, "the same block again"),
        ("ref_cnt", INT, "whether it is shared"),
        ("is_null", "builtins:bool", "whether it is a block at all"),
        ("next_free_block", f"{UTILS}:KVCacheBlock", "whether it is in vLLM's list"),
    )
)

ATTRIBUTES: tuple[VLLMAttribute, ...] = (
    *FAILED,
    *OF_SCHEDULER,
    *OF_MANAGER,
    *OF_POOL,
    *OF_REQUEST,
    *OF_BLOCK,
)
