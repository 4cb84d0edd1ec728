# SPDX-License-Identifier: Apache-2.0
"""Pairs of engines, stock and ours, on a random model so small that a pair costs seconds.

Loads share documents, and the cache holds only a few of them: stock computes them again.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

from vllm import LLM as StockLLM
from vllm import SamplingParams
from vllm.outputs import RequestOutput

from vllm_batchllm import LLM
from vllm_batchllm.bench.random_model import RandomModelSpec

TINY = RandomModelSpec(
    hidden_size=64,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    intermediate_size=128,
    vocab_size=512,
    max_position_embeddings=1024,
)

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "block_size": 32,
    "num_gpu_blocks_override": 28,
    "max_model_len": 512,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 512,
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
    "seed": 0,
}


_ENDED: list[Any] = []


class Pair(NamedTuple):
    stock: Any
    ours: Any


@contextmanager
def started(cls: Any, model: str, **arguments: Any) -> Iterator[Any]:
    """One engine; ended at exit."""
    llm = cls(model, **ENGINE | arguments)
    try:
        yield llm
    finally:
        # Its parts, not the whole, and kept to the end of the process: vLLM ends the process
        # groups with an engine, which the engines of the session have in common with this one.
        core = llm.llm_engine.engine_core.engine_core
        core.model_executor.shutdown()
        core.scheduler.shutdown()
        _ENDED.append(llm)


@contextmanager
def pair(model: str, **arguments: Any) -> Iterator[Pair]:
    """Both engines with the same arguments."""
    with started(StockLLM, model, **arguments) as stock, started(LLM, model, **arguments) as ours:
        yield Pair(stock, ours)


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def documents(
    num_documents: int = 6, members: int = 5, length: int = 170, seed: int = 1
) -> list[list[int]]:
    """Shuffled questions, each behind one of a few documents; tokens of the tiny model."""
    rng = random.Random(seed)
    heads = [[rng.randrange(3, 512) for _ in range(length)] for _ in range(num_documents)]
    prompts = [
        head + [rng.randrange(3, 512) for _ in range(rng.randrange(4, 30))]
        for head in heads
        for _ in range(members)
    ]
    rng.shuffle(prompts)
    return prompts


def greedy(max_tokens: int = 12, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, detokenize=False, **more)


def generate(
    llm: Any, prompts: Sequence[Any], params: Any = None, **more: Any
) -> list[RequestOutput]:
    """Outputs for token prompts, in their order, from an empty cache."""
    assert llm.reset_prefix_cache()
    inputs = [{"prompt_token_ids": p} if isinstance(p, list) else p for p in prompts]
    return llm.generate(inputs, params or greedy(), use_tqdm=False, **more)


def tokens(outputs: Sequence[RequestOutput]) -> list[list[list[int]]]:
    return [[list(each.token_ids) for each in output.outputs] for output in outputs]


def num_computed(outputs: Sequence[RequestOutput]) -> int:
    """Prompt tokens that were not found in the cache."""
    return sum(len(o.prompt_token_ids) - o.num_cached_tokens for o in outputs)


def num_changes(keys: Sequence[Any]) -> int:
    """How often a sequence goes on to another key."""
    return sum(1 for _ in groupby(keys)) - 1


def number_of(request_id: str) -> int:
    """The caller's number in an engine's request id: 7 in "7-a1b2" and in "0_7-a1b2" (n > 1)."""
    found = re.match(r"(?:\d+_)?(\d+)", request_id)
    assert found is not None, request_id
    return int(found[1])


@contextmanager
def admissions(llm: Any) -> Iterator[list[int]]:
    """The numbers of the requests in the order in which they first start, from 0."""
    scheduler, order = scheduler_of(llm), []
    schedule = scheduler.schedule

    def recording(*args: Any) -> Any:
        output = schedule(*args)
        order.extend(number_of(new.req_id) for new in output.scheduled_new_reqs)
        return output

    scheduler.schedule = recording
    try:
        yield order
    finally:
        del scheduler.schedule
        first = min(order, default=0)
        order[:] = [number - first for number in order]


def check_clean(llm: Any) -> None:
    """Nothing waits, runs or holds memory, and our structures are whole."""
    scheduler = scheduler_of(llm)
    pool = scheduler.kv_cache_manager.block_pool
    assert not scheduler.has_unfinished_requests() and len(scheduler.waiting) == 0
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "leaked blocks"
    if hasattr(scheduler, "batchllm_counters"):
        scheduler.waiting.check_integrity()
        pool.check_integrity()


def check_shares_more_than_stock(
    model: str, *, repeats: bool = True, **arguments: Any
) -> tuple[list[type], Any]:
    """Both engines on documents and questions: equal answers, groups that stay together, less computed.

    The kinds of KV cache groups that ours has, and its report. repeats: whether stock gives its own answers again when its
    requests come in another order; where it does not, answers are not compared.
    """
    prompts = documents()
    with pair(model, **arguments) as engines:
        expected = generate(engines.stock, prompts)
        with admissions(engines.ours) as admitted:
            outputs = generate(engines.ours, prompts)
        check_clean(engines.ours)
        groups = scheduler_of(engines.ours).kv_cache_config.kv_cache_groups
        report = engines.ours.report()
    equal = [a == b for a, b in zip(tokens(outputs), tokens(expected), strict=True)]
    # Sums of 16 bits depend on the shape of a step, and so on the machine: a near tie may fall either way.
    in_16_bits = arguments.get("dtype") == "bfloat16" and sum(equal) >= 0.9 * len(equal)
    assert all(equal) or in_16_bits or not repeats
    assert len({tuple(answer) for (answer,) in tokens(outputs)}) > len(prompts) // 2
    firsts = [tuple(prompts[n][:32]) for n in admitted]
    assert num_changes(firsts) == len(set(firsts)) - 1
    assert num_computed(outputs) < 0.8 * num_computed(expected)
    return [type(group.kv_cache_spec) for group in groups], report
