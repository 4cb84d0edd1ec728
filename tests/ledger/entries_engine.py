# SPDX-License-Identifier: Apache-2.0
"""Engine arguments and platforms: the ``--scheduler`` option, and the sizes for a batch."""

from __future__ import annotations

from vllm_symbol import VLLMSymbol

UNTIL_DEFAULTS = "vLLM has engine defaults for large batches that a scheduler can ask for"
UNTIL_SMALL_BLOCKS = "vLLM's default block size on the CPU is as small as on GPUs"
CPU = "vllm.platforms.cpu:CpuPlatform"

ENGINE: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        why="`--scheduler NAME` for serve, run-batch and bench",
        how="wrapped once at plugin load; adds one option beside --scheduler-cls",
        until="vLLM lets plugins register named schedulers",
        parameters=("parser",),
    ),
    VLLMSymbol(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        why="refuse bad options and prefix caching off before an engine process starts",
        how="wrapped once at plugin load; does nothing unless our scheduler is chosen",
        until="vLLM lets a scheduler class validate its VllmConfig",
    ),
    VLLMSymbol(
        "vllm.engine.arg_utils:EngineArgs._set_default_max_num_seqs_and_batched_tokens_args",
        why="raise the bounds of a step that the user left open",
        how="replaced on one object with our scheduler while its config is made; calls vLLM's",
        until=UNTIL_DEFAULTS,
        parameters=("usage_context", "model_config", "parallel_config"),
    ),
    VLLMSymbol(
        "vllm.engine.arg_utils:EngineArgs.get_batch_defaults",
        why="never run fewer requests than vLLM's LLM class on the same device; what `bench` takes on a GPU",
        how="called",
        until=UNTIL_DEFAULTS,
        parameters=("world_size",),
    ),
    VLLMSymbol(
        "vllm.usage.usage_lib:UsageContext",
        why="tokens of a step as for vLLM's LLM class, in servers and batch runs too",
        how="LLM_CLASS is passed to the two methods above",
        until=UNTIL_DEFAULTS,
    ),
    *(
        VLLMSymbol(
            f"vllm.platforms:current_platform.{name}",
            why="the sizes differ by device",
            how="called",
            until=UNTIL_DEFAULTS,
            parameters=parameters,
            source=f"vllm.platforms.interface:Platform.{name}",
        )
        for name, parameters in (
            ("is_cpu", ()),
            ("is_cuda_alike", ()),
            ("is_device_capability_family", ("capability",)),
            ("get_device_total_memory", ()),
        )
    ),
    VLLMSymbol(
        "vllm.config:CacheConfig",
        why="smaller KV blocks on the CPU, where vLLM chose its plain default",
        how="block_size and user_specified_block_size are set on a finished config",
        until=UNTIL_SMALL_BLOCKS,
        parameters=("block_size",),
    ),
    VLLMSymbol(
        f"{CPU}.check_and_update_config",
        why="it puts the CPU's block size into the config",
        how="read from the finished config by compat.planned_block_size",
        until=UNTIL_SMALL_BLOCKS,
        below="0.33",
    ),
    VLLMSymbol(
        f"{CPU}.update_block_size_for_backend",
        why="it puts the CPU's block size into the config, later, unless a user has set one",
        how="foreseen by compat.planned_block_size",
        until=UNTIL_SMALL_BLOCKS,
        since="0.33",
    ),
)

PROCESSOR = "vllm.v1.engine.logprobs:LogprobsProcessor"
UNTIL_START = "vLLM has a start for prompt_logprobs and reads the cache before it"

PROMPT_LOGPROBS: tuple[VLLMSymbol, ...] = (
    VLLMSymbol(
        "vllm.v1.engine.output_processor:LogprobsProcessor",
        why="check the start of a request before the engine gets it, and place its values",
        how="the name is replaced by a subclass once our scheduler is chosen",
        until=UNTIL_START,
    ),
    VLLMSymbol(
        f"{PROCESSOR}.from_new_request",
        why="the one place of the front end that sees a request before the engine does",
        how="overridden; calls super; extra_args and skip_reading_prefix_cache of a request with a start "
        "are set",
        until=UNTIL_START,
        parameters=("tokenizer", "request"),
    ),
    VLLMSymbol(
        f"{PROCESSOR}._update_prompt_logprobs",
        why="rows belong to the last positions, whatever the model runner sends before them",
        how="overridden; fills prompt_logprobs with None up to the start and calls super with the last rows",
        until=UNTIL_START,
        parameters=("prompt_logprobs_tensors",),
    ),
    VLLMSymbol(
        f"{PROCESSOR}._get_sampled_context_ids",
        why="tokens before the start have no values to be read from, and a cut character needs them",
        how="overridden; calls super for requests without a start",
        until=UNTIL_START,
        parameters=("logprobs_source", "max_context"),
    ),
    VLLMSymbol(
        "vllm.v1.outputs:LogprobsTensors",
        why="the rows of a prompt",
        how="its first three fields are cut to the last rows",
        until=UNTIL_START,
        parameters=("logprob_token_ids", "logprobs", "selected_token_ranks"),
    ),
    VLLMSymbol(
        "vllm.v1.engine:EngineCoreRequest",
        why="the request as the front end hands it on",
        how="prompt_token_ids, sampling_params and resumable are read; to choose a rank, what else keeps prompts apart, too, "
        "and data_parallel_rank is set while vLLM files the request",
        until=UNTIL_START,
        parameters=(
            *("prompt_token_ids", "sampling_params", "resumable", "mm_features", "prompt_embeds"),
            *("lora_request", "cache_salt", "data_parallel_rank", "request_id"),
        ),
    ),
)
