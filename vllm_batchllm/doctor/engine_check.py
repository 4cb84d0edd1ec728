# SPDX-License-Identifier: Apache-2.0
"""The config that an engine with our scheduler would get, beside stock vLLM's: nothing is loaded or started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vllm_batchllm.doctor.finding import Finding, guarded

TOPIC = "engine"


def check_engine(model: str, dtype: str) -> Iterator[Finding]:
    """Leaf, sizes, prefix caching, attention and graphs of ``vllm serve MODEL`` with our scheduler."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER

    def config_with(**scheduler: str) -> Any:
        args = EngineArgs(model=model, dtype=dtype, skip_tokenizer_init=True, **scheduler)
        return args.create_engine_config(UsageContext.OPENAI_API_SERVER)

    ours = config_with(scheduler_cls=BATCHLLM_SCHEDULER)
    if not hasattr(EngineArgs.add_cli_args, "batchllm_wrapped"):
        yield Finding(
            "problem",
            TOPIC,
            "vLLM has not loaded the plugin, so nothing is checked or sized when our scheduler is chosen",
            "see the lines on the plugin above",
        )
    stock = config_with()
    parts: tuple[Callable[[Any, Any], Finding], ...] = (
        leaf,
        prefix_caching,
        sizes,
        attention,
        shared_attention,
        graphs,
    )
    for part in parts:
        yield from guarded(TOPIC, lambda part=part: [part(ours, stock)])  # type: ignore[misc]


def leaf(ours: Any, _: Any) -> Finding:
    """Which of our two scheduler classes serves."""
    from vllm_batchllm.scheduler.scheduler import leaf_for

    is_async = bool(ours.scheduler_config.async_scheduling)
    kind = "asynchronous" if is_async else "synchronous"
    return Finding("ok", TOPIC, f"scheduler {leaf_for(is_async).__name__} ({kind} scheduling)")


def prefix_caching(ours: Any, _: Any) -> Finding:
    """Whether prompts are cached at all; off is refused before we come here."""
    if ours.cache_config.enable_prefix_caching:
        return Finding("ok", TOPIC, "prefix caching is on")
    return Finding("problem", TOPIC, "prefix caching is off", "give --enable-prefix-caching")


def sizes(ours: Any, stock: Any) -> Finding:
    """Block size, and which sizes differ from vLLM's."""
    from vllm_batchllm.plugin.engine_sizes import describe_change

    mine, theirs = _sizes(ours), _sizes(stock)
    changes = [describe_change(name, theirs[name], mine[name]) for name in mine]
    told = "; ".join(filter(None, changes)) or "all sizes are vLLM's"
    return Finding("ok", TOPIC, f"blocks of {mine['block_size']} tokens; {told}")


def _sizes(config: Any) -> dict[str, int]:
    from vllm_batchllm.compat.features import planned_block_size
    from vllm_batchllm.plugin.engine_sizes import CPU_STOCK_BLOCK_SIZE

    steps = config.scheduler_config
    return {
        "max_num_seqs": steps.max_num_seqs,
        "max_num_batched_tokens": steps.max_num_batched_tokens,
        "block_size": planned_block_size(config, cpu_default=CPU_STOCK_BLOCK_SIZE),
    }


def attention(ours: Any, _: Any) -> Finding:
    """vLLM's attention backend for the model's layers."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    model = ours.model_config
    with set_current_vllm_config(ours):
        backend = get_attn_backend(
            model.get_head_size(), model.dtype, ours.cache_config.cache_dtype, use_mla=model.use_mla
        )
    return Finding("ok", TOPIC, f"attention backend {backend.get_name()}")


def shared_attention(ours: Any, _: Any) -> Finding:
    """What the option ``shared_attention`` comes to here."""
    from vllm_batchllm.attention.choice import use_shared_attention
    from vllm_batchllm.scheduler.settings import config_of

    choice = use_shared_attention(ours, config_of(ours).shared_attention)
    return Finding("ok", TOPIC, f"shared attention is {choice.line}")


def graphs(ours: Any, _: Any) -> Finding:
    """Decode steps that are captured as CUDA graphs."""
    compilation = ours.compilation_config
    captured = compilation.cudagraph_capture_sizes or []
    mode = getattr(compilation.cudagraph_mode, "name", compilation.cudagraph_mode)
    if not captured or mode == "NONE":
        return Finding("ok", TOPIC, "no CUDA graphs")
    largest = max(captured)
    told = f"CUDA graphs ({mode}) of {len(captured)} sizes, up to {largest} tokens"
    if ours.scheduler_config.max_num_seqs <= largest:
        return Finding("ok", TOPIC, told)
    return Finding(
        "note",
        TOPIC,
        f"{told}; steps of more requests, up to max_num_seqs {ours.scheduler_config.max_num_seqs}, run without",
        f"--max-num-seqs {largest}, or larger --cudagraph-capture-sizes",
    )
