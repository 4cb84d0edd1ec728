# SPDX-License-Identifier: Apache-2.0
"""The ledger (see ``compat.py``): every symbol of vLLM that we touch outside ``memory/``."""

from __future__ import annotations

from vllm_batchllm.touched import Touched

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
OFFLINE = "vllm.entrypoints.common.offline:OfflineInferenceMixin"
MANAGER = "vllm.v1.core.kv_cache_manager:KVCacheManager"
UNTIL_ADMISSION = "vLLM offers a hook that may refuse an admission"
UNTIL_PUBLIC = "vLLM has a public scheduler interface"
UNTIL_STATS = "SchedulerStats carries figures of other schedulers, and vLLM shows them"
UNTIL_DEFAULTS = "vLLM has engine defaults for large batches that a scheduler can ask for"
UNTIL_BATCH = "vLLM's LLM offers hooks around adding requests and collecting outputs"

ENTRIES: tuple[Touched, ...] = (
    Touched(
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        why="`--scheduler NAME` for serve, run-batch and bench",
        how="wrapped once at plugin load; adds one option beside --scheduler-cls",
        until="vLLM lets plugins register named schedulers",
        parameters=("parser",),
    ),
    Touched(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        why="refuse bad options and prefix caching off before an engine process starts",
        how="wrapped once at plugin load; does nothing unless our scheduler is chosen",
        until="vLLM lets a scheduler class validate its VllmConfig",
    ),
    Touched(
        "vllm.v1.core.sched.request_queue:RequestQueue",
        why="order of admission",
        how="implemented by PrefixGroupQueue",
        until=UNTIL_PUBLIC,
    ),
    Touched(
        SCHEDULER,
        why="base class",
        how="subclassed; `waiting` is replaced after construction",
        until=UNTIL_PUBLIC,
        parameters=("vllm_config", "kv_cache_config", "block_size", "hash_block_size"),
    ),
    Touched(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        why="base class when async scheduling is on",
        how="subclassed",
        until=UNTIL_PUBLIC,
    ),
    Touched(
        f"{SCHEDULER}.schedule",
        why="count steps, tokens and admissions",
        how="overridden; calls super and reads the output; where prefills are spread, "
        "`max_num_scheduled_tokens`, which it reads in every step, is set before, from "
        "`num_spec_tokens` among others (tests/scheduler/test_spread_prefills.py)",
        until="SchedulerStats carries these counters to LLM, and steps have a token budget hook",
        parameters=("throttle_prefills",),
    ),
    Touched(
        f"{SCHEDULER}._preempt_request",
        why="count preemptions and the prompt tokens they leave uncomputed",
        how="overridden; calls super",
        until="SchedulerStats carries these counters to LLM",
        parameters=("request", "timestamp", "drop_stale_output"),
    ),
    Touched(
        f"{SCHEDULER}.add_request",
        why="a request that can never be served must not block the queue",
        how="overridden; calls super, then puts such a request into `grammar_compile_error_reqs`, "
        "which vLLM ends with an error",
        until="vLLM ends requests that outgrow the KV cache itself",
        parameters=("request",),
    ),
    Touched(
        "vllm.v1.core.sched.scheduler:KVCacheManager",
        why="have the scheduler build a manager that asks before it admits",
        how="the name is replaced while our scheduler is being built, and put back",
        until=UNTIL_ADMISSION,
    ),
    Touched(
        f"{MANAGER}.allocate_slots",
        why="the one place where an admission can be refused without copying schedule()",
        how="overridden; calls super unless the admission refuses a waiting request",
        until=UNTIL_ADMISSION,
        parameters=("request", "has_scheduled_reqs"),
    ),
    *(
        Touched(
            f"{MANAGER}.{name}",
            why="know that a request has finished or was preempted",
            how="overridden; calls super",
            until=UNTIL_ADMISSION,
            parameters=("request",),
        )
        for name in ("free", "pop_blocks_for_free")
    ),
    Touched(
        f"{MANAGER}.get_blocks",
        why="how many blocks of a running request are its own",
        how="called",
        until=UNTIL_ADMISSION,
        parameters=("request_id",),
    ),
    *(
        Touched(
            f"vllm.v1.kv_cache_interface:{name}",
            why="tell whether the cache bounds the length of a request",
            how="compared with the types of KV cache groups",
            until=UNTIL_ADMISSION,
        )
        for name in ("FullAttentionSpec", "MLAAttentionSpec")
    ),
    Touched(
        f"{SCHEDULER}._update_request_as_session",
        why="a streaming session that outgrows the KV cache must not block the queue",
        how="overridden; calls super, then ends such a session as above",
        until="vLLM ends requests that outgrow the KV cache itself",
        parameters=("session", "update"),
    ),
    Touched(
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
    Touched(
        f"{SCHEDULER}.make_stats",
        why="send what the counters gained to the front end",
        how="overridden; calls super and adds to the result",
        until=UNTIL_STATS,
    ),
    Touched(
        "vllm.v1.metrics.stats:SchedulerStats",
        why="the only figures of a step that reach the front end",
        how="prefixed keys in its map of KV fetches, taken out again before vLLM's loggers look",
        until=UNTIL_STATS,
        parameters=("num_kv_fetch_reqs_by_stage",),
    ),
    Touched(
        "vllm.v1.metrics.loggers:StatLoggerManager.__init__",
        why="show our metrics beside vLLM's",
        how="wrapped once our scheduler is chosen; puts ours first in stat_loggers, for the "
        "engines in engine_indexes",
        until="vLLM has a stat logger entry point that respects --disable-log-stats",
        parameters=("vllm_config", "engine_idxs"),
    ),
    Touched(
        "vllm.v1.metrics.loggers:AggregateStatLoggerBase",
        why="base class of our stat logger",
        how="subclassed",
        until=UNTIL_STATS,
        parameters=("vllm_config", "engine_indexes"),
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore",
        why="read the counters from another process",
        how="one extra method, added when our scheduler is built, called as a utility",
        until="SchedulerStats carries these counters to LLM",
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore.pause_scheduler",
        why="queue the whole batch before the first step",
        how="called as a utility, mode keep",
        until=UNTIL_BATCH,
        parameters=("mode", "clear_cache"),
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore.resume_scheduler",
        why="start the batch once it is queued",
        how="called as a utility",
        until=UNTIL_BATCH,
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore.is_scheduler_paused",
        why="leave an engine paused that the user had paused",
        how="called as a utility",
        until=UNTIL_BATCH,
    ),
    *(
        Touched(
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
    Touched(
        f"{OFFLINE}._preprocess_cmpl_one",
        why="a prompt that cannot be rendered fails alone",
        how="overridden; calls super and catches",
        until=UNTIL_BATCH,
        parameters=("prompt",),
    ),
    Touched(
        f"{OFFLINE}._preprocess_chat_one",
        why="a conversation that cannot be rendered fails alone",
        how="overridden; calls super and catches",
        until=UNTIL_BATCH,
        parameters=("conversation",),
    ),
    Touched(
        f"{OFFLINE}._render_and_add_requests",
        why="duplicates, look-ahead and failed requests",
        how="overridden; adds through _add_request",
        until=UNTIL_BATCH,
        parameters=("prompts", "params", "lora_requests", "priorities"),
    ),
    Touched(
        f"{OFFLINE}._add_request",
        why="add one request with a counted id",
        how="called",
        until=UNTIL_BATCH,
        parameters=("prompt", "params", "lora_request", "priority"),
    ),
    Touched(
        "vllm.v1.engine.output_processor:OutputProcessor.abort_requests",
        why="a request that fails after it was registered is taken out again",
        how="called through LLMEngine.abort_request; `external_req_ids`, `request_states` and "
        "`parent_requests` say what is left of it (tests/engine/test_llm.py)",
        until=UNTIL_BATCH,
        parameters=("request_ids", "internal"),
    ),
    Touched(
        f"{OFFLINE}._run_engine",
        why="feed the look-ahead, show savings, answer duplicates",
        how="overridden with a loop over LLMEngine.step",
        until=UNTIL_BATCH,
        parameters=("output_type", "use_tqdm"),
    ),
    Touched(
        "vllm.engine.arg_utils:EngineArgs._set_default_max_num_seqs_and_batched_tokens_args",
        why="raise the bounds of a step that the user left open",
        how="replaced on one object with our scheduler while its config is made; calls vLLM's",
        until=UNTIL_DEFAULTS,
        parameters=("usage_context", "model_config", "parallel_config"),
    ),
    Touched(
        "vllm.engine.arg_utils:EngineArgs.get_batch_defaults",
        why="never run fewer requests than vLLM's LLM class on the same device",
        how="called",
        until=UNTIL_DEFAULTS,
        parameters=("world_size",),
    ),
    Touched(
        "vllm.usage.usage_lib:UsageContext",
        why="tokens of a step as for vLLM's LLM class, in servers and batch runs too",
        how="LLM_CLASS is passed to the two methods above",
        until=UNTIL_DEFAULTS,
    ),
    *(
        Touched(
            f"vllm.platforms:current_platform.{name}",
            why="the sizes differ by device",
            how="called",
            until=UNTIL_DEFAULTS,
            parameters=parameters,
        )
        for name, parameters in (
            ("is_cpu", ()),
            ("is_cuda_alike", ()),
            ("is_device_capability_family", ("capability",)),
        )
    ),
    Touched(
        "vllm.config:CacheConfig",
        why="smaller KV blocks on the CPU, where vLLM chose its plain default",
        how="block_size and user_specified_block_size are set on a finished config",
        until="vLLM's default block size on the CPU is as small as on GPUs",
        parameters=("block_size",),
    ),
)
