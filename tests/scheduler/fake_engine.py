# SPDX-License-Identifier: Apache-2.0
"""Real schedulers on a fake KV config: no weights, outputs made here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.simulate.ring import RingSpec, build_on, make_config

STOP_TOKEN = 7

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 65536,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_folder(path: Path) -> str:
    """A folder with a plain Llama config: all that a scheduler needs of a model."""
    (path / "config.json").write_text(json.dumps(LLAMA))
    return str(path)


def make_vllm_config(
    model: str,
    *,
    num_blocks: int = 10_000,
    block_size: int = 16,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 8192,
    policy: str = "fcfs",
    async_scheduling: bool = False,
    enable_prefix_caching: bool = True,
    options: dict[str, Any] | None = None,
) -> VllmConfig:
    """A VllmConfig as an engine would make it; ``options`` are ours."""
    spec = RingSpec(
        num_blocks=num_blocks - 1,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=32768,
        prefix_caching=enable_prefix_caching,
        options=options,
    )
    return make_config(spec, model, policy, async_scheduling)


def make_scheduler(
    scheduler_cls: Any, vllm_config: VllmConfig, environment: Environment | None = None
) -> Any:
    """Build ``scheduler_cls`` the way the engine core calls it; ``environment`` is for ours only."""
    return build_on(scheduler_cls, vllm_config, log_stats=True, environment=environment)


def make_request(
    request_id: str,
    prompt: Sequence[int],
    *,
    max_tokens: int = 3,
    block_size: int = 16,
    hashed: bool = True,
    sampling: dict[str, Any] | None = None,
    **fields: Any,
) -> Request:
    """One vLLM request; ``fields`` are further arguments of its class."""
    init_none_hash(sha256)
    params = SamplingParams(ignore_eos=True, max_tokens=max_tokens, **(sampling or {}))
    params.update_from_generation_config({}, STOP_TOKEN)
    return Request(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling_params=params,
        pooling_params=None,
        block_hasher=get_request_block_hasher(block_size, sha256) if hashed else None,
        **fields,
    )


def make_requests(
    prompts: Iterable[Sequence[int]],
    *,
    max_tokens: int = 3,
    block_size: int = 16,
    priorities: Sequence[int] | None = None,
    hashed: bool = True,
    **sampling: Any,
) -> list[Request]:
    """vLLM requests named "0", "1", ... in order of arrival."""
    return [
        make_request(
            str(number),
            prompt,
            max_tokens=max_tokens,
            block_size=block_size,
            hashed=hashed,
            sampling=sampling,
            arrival_time=float(number),
            priority=0 if priorities is None else priorities[number],
        )
        for number, prompt in enumerate(prompts)
    ]


def model_output(scheduler: Scheduler, output: SchedulerOutput) -> ModelRunnerOutput:
    """One token for every request whose prefill is complete with this step."""
    ids = list(output.num_scheduled_tokens)
    sampled = []
    for request_id in ids:
        request = scheduler.requests[request_id]
        sampled.append([] if request.is_prefill_chunk else [100 + request.num_tokens % 800])
    return ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
        sampled_token_ids=sampled,
        logprobs=None,
        prompt_logprobs_dict={},
        pooler_output=[],
    )


def admitted_ids(output: SchedulerOutput) -> list[str]:
    """Requests that started (or came back) in this step, in order."""
    return [new.req_id for new in output.scheduled_new_reqs] + sorted(
        output.scheduled_cached_reqs.resumed_req_ids
    )


def run_to_end(scheduler: Scheduler, max_steps: int = 100_000) -> list[str]:
    """Step until nothing is left; return ids in order of admission."""
    order: list[str] = []
    for _ in range(max_steps):
        if not scheduler.has_unfinished_requests():
            return order
        output = scheduler.schedule()
        order += admitted_ids(output)
        scheduler.update_from_output(output, model_output(scheduler, output))
    raise AssertionError(f"{scheduler.get_request_counts()} requests left after {max_steps} steps")


def run_overlapped(scheduler: Scheduler, depth: int = 2, max_steps: int = 100_000) -> list[str]:
    """As :func:`run_to_end`, with ``depth`` steps in flight: the async engine's way."""
    order: list[str] = []
    in_flight: list[tuple[SchedulerOutput, ModelRunnerOutput]] = []
    for _ in range(max_steps):
        if scheduler.has_unfinished_requests():
            output = scheduler.schedule()
            order += admitted_ids(output)
            if output.total_num_scheduled_tokens:
                in_flight.append((output, model_output(scheduler, output)))
        if len(in_flight) >= depth or (in_flight and not output.total_num_scheduled_tokens):
            scheduler.update_from_output(*in_flight.pop(0))
        if not in_flight and not scheduler.has_unfinished_requests():
            return order
    raise AssertionError("the overlapped run does not end")
