# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine arguments, given the sizes of `engine_sizes` where the user gave none.

Nothing here touches a class of vLLM: the method that fills in defaults is replaced on the one
object that asks for our scheduler, and only while its config is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vllm_batchllm.compat.features import planned_block_size
from vllm_batchllm.log import get_logger
from vllm_batchllm.plugin.engine_sizes import (
    CPU_STOCK_BLOCK_SIZE,
    Device,
    EngineSizes,
    Workload,
    cpu_block_size,
    describe_change,
    raised_seqs,
    seqs_ceiling,
)

logger = get_logger(__name__)

FILL_IN = "_set_default_max_num_seqs_and_batched_tokens_args"
"""The method of vLLM's EngineArgs that fills in both bounds of a step."""

MAX_GRAPH_TOKENS, MAX_GRAPH_TOKENS_BLACKWELL = 512, 1024
"""Largest decode step, tokens, that vLLM captures as a graph by default, the second on GPUs of
compute capability 10.x (B200, GB200). vLLM keeps the figures inside a method; a test asks it."""


@dataclass(slots=True)
class ChosenSizes:
    """The changes made to one engine's arguments, to be told in one line of the log."""

    changes: list[str] = field(default_factory=list)

    def note(self, name: str, before: int, after: int) -> None:
        change = describe_change(name, before, after)
        if change is not None:
            self.changes.append(change)

    def settle(self, vllm_config: Any) -> None:
        """Fit the block size of a finished config, and log everything that was changed."""
        self._fit_block_size(vllm_config)
        if self.changes:
            logger.info("Sizes for a batch instead of vLLM's defaults: %s", "; ".join(self.changes))

    def _fit_block_size(self, vllm_config: Any) -> None:
        cache, model = vllm_config.cache_config, vllm_config.model_config
        before = planned_block_size(vllm_config, cpu_default=CPU_STOCK_BLOCK_SIZE)
        after = cpu_block_size(
            before,
            platform=_platform(),
            by_user=_is_block_size_bound(vllm_config),
            has_state=_has_state(model),
            uses_mla=model.use_mla,
        )
        if after != before:
            cache.block_size = after
            # vLLM sets its default again whenever it copies a config without this mark.
            cache.user_specified_block_size = True
            self.note("block_size", before, after)


@contextmanager
def batch_sizes(args: Any) -> Iterator[ChosenSizes]:
    """While it is open, ``args`` fills in the sizes of a batch for what the user left open.

    Args:
        args: vLLM's ``EngineArgs`` of an engine with our scheduler.
    """
    from vllm.usage.usage_lib import UsageContext

    sizes = ChosenSizes()
    fill_in = getattr(args, FILL_IN)

    def fill_in_ours(usage_context: Any, model_config: Any, parallel_config: Any) -> None:
        by_user = args.max_num_seqs, args.max_num_batched_tokens
        fill_in(usage_context, model_config, parallel_config)
        stock = EngineSizes(args.max_num_seqs, args.max_num_batched_tokens)
        work = _workload(args, model_config)
        if work.is_batch and None in by_user and _device(args).has_room:
            as_llm = partial(fill_in, UsageContext.LLM_CLASS, model_config, parallel_config)
            ours = _larger(args, by_user, stock, work, as_llm)
            args.max_num_seqs = ours.max_num_seqs
            args.max_num_batched_tokens = ours.max_num_batched_tokens
            sizes.note("max_num_seqs", stock.max_num_seqs, ours.max_num_seqs)
            sizes.note(
                "max_num_batched_tokens",
                stock.max_num_batched_tokens,
                ours.max_num_batched_tokens,
            )

    setattr(args, FILL_IN, fill_in_ours)
    try:
        yield sizes
    finally:
        delattr(args, FILL_IN)


def _larger(
    args: Any,
    by_user: tuple[int | None, int | None],
    stock: EngineSizes,
    work: Workload,
    fill_in_as_llm: Callable[[], None],
) -> EngineSizes:
    """The sizes for a batch, none below ``stock``'s; what the user set stays.

    vLLM's own rules (model length, chunked prefill, data-parallel buffers, its throughput mode)
    decide the tokens of a step once more, as for its ``LLM`` class.
    """
    seqs_by_user, tokens_by_user = by_user
    ceiling = seqs_ceiling(_device(args), work) if seqs_by_user is None else None
    tokens = stock.max_num_batched_tokens
    if tokens_by_user is None:
        args.max_num_seqs = max(stock.max_num_seqs, ceiling or 0)
        args.max_num_batched_tokens = None
        fill_in_as_llm()
        tokens = max(tokens, args.max_num_batched_tokens)
    seqs = raised_seqs(EngineSizes(stock.max_num_seqs, tokens), ceiling, work)
    return EngineSizes(seqs, tokens)


def _workload(args: Any, model_config: Any) -> Workload:
    return Workload(
        generates=model_config.runner_type == "generate",
        has_state=_has_state(model_config),
        tokens_per_decode=_tokens_per_decode(args),
        for_latency=args.performance_mode == "interactivity",
        max_num_active_seqs=args.max_num_active_seqs,
        max_num_scheduled_tokens=args.max_num_scheduled_tokens,
    )


def _tokens_per_decode(args: Any) -> int | None:
    """Tokens that one running request takes of a step; None if a model decides it later."""
    if args.diffusion_config is not None:
        return None
    if args.speculative_config is None:
        return 1
    num_drafts = args.speculative_config.get("num_speculative_tokens")
    # Anything else is refused by vLLM, a few lines later and by name.
    return 1 + num_drafts if isinstance(num_drafts, int) else None


def _is_block_size_bound(vllm_config: Any) -> bool:
    """Whether the user set the block size, or something that has to fit it.

    That is a number of blocks, the unit of prefix matching, and a KV connector, whose other end
    has blocks too.
    """
    cache = vllm_config.cache_config
    return bool(
        cache.user_specified_block_size
        or cache.num_gpu_blocks_override is not None
        or cache.prefix_match_unit is not None
        or vllm_config.kv_transfer_config is not None
    )


def _has_state(model_config: Any) -> bool:
    return bool(model_config.has_inner_state or model_config.is_hybrid)


def _device(args: Any) -> Device:
    from vllm.usage.usage_lib import UsageContext

    world_size = args.pipeline_parallel_size * args.tensor_parallel_size
    _, num_seqs = args.get_batch_defaults(world_size)
    platform = _platform()
    memory_bytes = _gpu_memory_bytes() if platform == "gpu" else float("inf")
    return Device(platform, _max_graph_tokens(args), num_seqs[UsageContext.LLM_CLASS], memory_bytes)


def _gpu_memory_bytes() -> float:
    from vllm.platforms import current_platform

    return float(current_platform.get_device_total_memory())


def _platform() -> str:
    from vllm.platforms import current_platform

    if current_platform.is_cuda_alike():
        return "gpu"
    return "cpu" if current_platform.is_cpu() else "other"


def _max_graph_tokens(args: Any) -> int:
    """The user's largest graph, or vLLM's by default, tokens."""
    from vllm.platforms import current_platform

    for place in (args, args.compilation_config):
        if place.cudagraph_capture_sizes:
            return max(map(int, place.cudagraph_capture_sizes))
        if place.max_cudagraph_capture_size is not None:
            return int(place.max_cudagraph_capture_size)
    if current_platform.is_device_capability_family(100):
        return MAX_GRAPH_TOKENS_BLACKWELL
    return MAX_GRAPH_TOKENS
