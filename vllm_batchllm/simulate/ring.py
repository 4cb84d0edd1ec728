# SPDX-License-Identifier: Apache-2.0
"""Real schedulers on a KV cache that holds nothing: no weights, no worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.config import SECTION
from vllm_batchllm.prefix.readable import MARK, START, readable_tokens
from vllm_batchllm.workloads.batch import Batch

MODEL_FOLDER = Path(__file__).parent / "model"
"""A configuration without weights: all that a scheduler asks of a model."""

STOP_TOKEN, OTHER_TOKEN = 7, 11


@dataclass(frozen=True, slots=True)
class RingSpec:
    """Sizes of a fake engine.

    num_blocks: that requests can hold; vLLM's null block is added. options: ours, or None for a
    scheduler that takes none.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefix_caching: bool = True
    options: dict[str, Any] | None = field(default=None)


def build_scheduler(
    scheduler_cls: Any,
    spec: RingSpec,
    environment: Environment | None = None,
    watermark: float = 0.0,
) -> Any:
    """Build `scheduler_cls` as the engine core would; `environment` is for ours only.

    watermark: vLLM's option, share of the KV blocks that stay free as a request starts.
    """
    config = make_ring_config(scheduler_cls, spec, watermark)
    return build_on(scheduler_cls, config, environment=environment)


def make_ring_config(
    scheduler_cls: Any, spec: RingSpec, watermark: float = 0.0, policy: str = "fcfs"
) -> VllmConfig:
    """The configuration of `build_scheduler`; policy: vLLM's, "fcfs" or "priority"."""
    is_async = issubclass(scheduler_cls, AsyncScheduler)
    config = make_config(spec, policy=policy, async_scheduling=is_async)
    config.scheduler_config.watermark = watermark
    return config


def build_on(
    scheduler_cls: Any,
    config: VllmConfig,
    log_stats: bool = False,
    environment: Environment | None = None,
) -> Any:
    """The same on a configuration of `make_config`."""
    elsewhere = {} if environment is None else {"environment": environment}
    block_size = config.cache_config.block_size
    layers = FullAttentionSpec(
        block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    return scheduler_cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=config.cache_config.num_gpu_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], layers)],
        ),
        structured_output_manager=StructuredOutputManager(config),
        include_finished_set=False,
        log_stats=log_stats,
        block_size=block_size,
        hash_block_size=block_size,
        **elsewhere,
    )


def make_config(
    spec: RingSpec,
    model: str = str(MODEL_FOLDER),
    policy: str = "fcfs",
    async_scheduling: bool = False,
) -> VllmConfig:
    """A configuration as an engine would make it, for a model that is never loaded."""
    config = VllmConfig(
        scheduler_config=SchedulerConfig(
            max_num_seqs=spec.max_num_seqs,
            max_num_batched_tokens=spec.max_num_batched_tokens,
            max_model_len=spec.max_model_len,
            enable_chunked_prefill=True,
            is_encoder_decoder=False,
            policy=policy,
        ),
        model_config=ModelConfig(
            model=model,
            skip_tokenizer_init=True,
            dtype="float32",
            max_model_len=spec.max_model_len,
            seed=0,
        ),
        cache_config=CacheConfig(
            block_size=spec.block_size, enable_prefix_caching=spec.prefix_caching
        ),
        device_config=DeviceConfig("cpu"),
        additional_config={} if spec.options is None else {SECTION: spec.options},
    )
    config.scheduler_config.async_scheduling = async_scheduling
    config.cache_config.num_gpu_blocks = spec.num_blocks + 1
    config.cache_config.block_size = spec.block_size
    return config


class RequestMaker:
    """Makes requests for the prompts of `batch` one by one.

    Blocks are named by Python's own hash of 64 bits, which is some times as fast as vLLM's; of a
    million blocks two are confused with a probability of 1 in 30 million.
    """

    def __init__(self, batch: Batch, block_size: int) -> None:
        init_none_hash(_hash)
        self._batch, self._hasher = batch, get_request_block_hasher(block_size, _hash)

    def make(self, name: int, index: int, place: float, priority: int = 0) -> Request:
        """A request called `name`, for the prompt at `index`, which is the `place`-th that arrives, or comes at that time.

        priority: vLLM's, the smaller the more urgent; only its policy "priority" looks at it.
        """
        return Request(
            request_id=str(name),
            prompt_token_ids=self._batch.prompts[index],
            sampling_params=_sampling(self._batch, index),
            pooling_params=None,
            arrival_time=float(place),
            priority=priority,
            block_hasher=self._hasher,
        )


def make_requests(batch: Batch, order: Sequence[int], block_size: int) -> list[Request]:
    """Requests named "0", "1", ... for the prompts of `batch` at the places in `order`."""
    maker = RequestMaker(batch, block_size)
    return [maker.make(place, index, place) for place, index in enumerate(order)]


def _sampling(batch: Batch, index: int) -> SamplingParams:
    """A length that is known is `max_tokens`; another ends with a stop token.

    A start is marked as our front end would; vLLM's own scheduler does not look at the mark.
    """
    if batch.starts is not None:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=batch.output_lens[index],
            ignore_eos=True,
            prompt_logprobs=1,
            extra_args={START: batch.starts[index]},
        )
        limit = readable_tokens(params, batch.starts[index])
        params.extra_args = {START: batch.starts[index], MARK: limit}
        return params
    if batch.lengths_known:
        return SamplingParams(temperature=0.0, max_tokens=batch.output_lens[index], ignore_eos=True)
    params = SamplingParams(
        temperature=0.0, max_tokens=batch.max_output_tokens, stop_token_ids=[STOP_TOKEN]
    )
    params.update_from_generation_config({}, STOP_TOKEN)
    return params


def _hash(value: Any) -> bytes:
    return hash(value).to_bytes(8, "little", signed=True)


def sample(scheduler: Any, output: SchedulerOutput, ends: dict[str, int]) -> ModelRunnerOutput:
    """One token for every request whose prefill ends with this step; the last one stops it.

    With steps in flight: asked right behind `schedule()`, which counts their tokens as placeholders.

    ends: output tokens of each request.
    """
    names = list(output.num_scheduled_tokens)
    sampled: list[list[int]] = []
    for name in names:
        request = scheduler.requests[name]
        if request.is_prefill_chunk:
            sampled.append([])
        elif request.num_output_tokens + max(request.num_output_placeholders, 1) >= ends[name]:
            sampled.append([STOP_TOKEN])
        else:
            sampled.append([OTHER_TOKEN])
    return ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )
