# SPDX-License-Identifier: Apache-2.0
"""Models whose layers keep windows, chunks or states: steps and hits of our scheduler against stock.

    python benchmarks/layer_kinds.py [--kinds NAME ...] [--num-requests N] [--json FILE]

Real schedulers on a KV cache that holds nothing; every figure is a counter. *Optimum*: tokens that
vLLM's own managers find in the cache if the requests come one at a time, in sorted order, with as much
memory as they like. *Tokens*: through the model, with those computed again after a preemption, ours over sorted's.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
)
from vllm.v1.structured_output import StructuredOutputManager

from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler
from vllm_batchllm.simulate.ring import RingSpec, make_config, make_requests, sample
from vllm_batchllm.workloads.batch import Batch

HEADS: dict[str, Any] = {"num_kv_heads": 1, "head_size": 1, "dtype": torch.float32}


def full(size: int = 16) -> KVCacheSpec:
    return FullAttentionSpec(block_size=size, **HEADS)


def window(tokens: int, size: int = 16) -> KVCacheSpec:
    return SlidingWindowSpec(block_size=size, sliding_window=tokens, **HEADS)


def chunk(tokens: int, size: int = 16) -> KVCacheSpec:
    return ChunkedLocalAttentionSpec(block_size=size, attention_chunk_size=tokens, **HEADS)


def state(size: int) -> KVCacheSpec:
    return MambaSpec(
        block_size=size, shapes=((1, 1),), dtypes=(torch.float32,), mamba_cache_mode="align"
    )


KINDS: dict[str, list[KVCacheSpec]] = {
    "full": [full()],
    "mistral: windows of 4096": [window(4096)],
    "window of 512": [window(512)],
    "gemma: full + 5 windows of 1024": [full(), *(window(1024) for _ in range(5))],
    "gpt-oss: full + window of 128": [full(), window(128)],
    "hybrid: full + 3 states, blocks of 1056": [full(1056), *(state(1056) for _ in range(3))],
    "llama-4: full + 3 chunks of 2048": [full(), *(chunk(2048) for _ in range(3))],
    "MLA: blocks of 64": [MLAAttentionSpec(block_size=64, **HEADS)],
}
OUTPUTS = (32, 200, 800)
AT_ONCE = 40
"""Requests, at their full length, that the memory holds."""


@dataclass(frozen=True)
class Row:
    """One arm on one kind of layers and one batch.

    hit_tokens: found in the cache at first starts. tokens: through the model, what is computed again after a preemption included.
    """

    kind: str
    batch: str
    outputs: int
    arm: str
    steps: int
    preemptions: int
    hit_tokens: int
    tokens: int
    optimum_tokens: int


def unshared(num_requests: int, output: int) -> Batch:
    rng = random.Random(1)
    prompts = [
        [rng.randrange(10, 60_000) for _ in range(rng.randrange(600, 3000))]
        for _ in range(num_requests)
    ]
    lens = [max(1, int(output * rng.uniform(0.5, 1.5))) for _ in prompts]
    return Batch("layers", prompts=prompts, output_lens=lens, lengths_known=True)


def grouped(num_requests: int, output: int, degree: int = 16) -> Batch:
    rng = random.Random(2)
    prompts = []
    for _ in range(num_requests // degree):
        prefix = [rng.randrange(10, 60_000) for _ in range(2200)]
        prompts += [
            prefix + [rng.randrange(10, 60_000) for _ in range(rng.randrange(40, 160))]
            for _ in range(degree)
        ]
    rng.shuffle(prompts)
    lens = [max(1, int(output * rng.uniform(0.5, 1.5))) for _ in prompts]
    return Batch("layers", prompts=prompts, output_lens=lens, lengths_known=True)


def build(cls: Any, specs: list[KVCacheSpec], sizes: RingSpec) -> Any:
    is_async = issubclass(cls, AsyncScheduler)
    config = make_config(sizes, async_scheduling=is_async)
    if any(isinstance(spec, MambaSpec) for spec in specs):
        config.cache_config.mamba_cache_mode = "align"
    groups = [KVCacheGroupSpec([f"layer {n}"], spec) for n, spec in enumerate(specs)]
    return cls(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(
            num_blocks=sizes.num_blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups
        ),
        structured_output_manager=StructuredOutputManager(config),
        include_finished_set=False,
        log_stats=True,
        block_size=sizes.block_size,
        hash_block_size=min(spec.block_size for spec in specs),
    )


def serve(scheduler: Any, requests: list[Any], ends: dict[str, int]) -> tuple[int, int, int, int]:
    """Steps, preemptions, tokens found in the cache at first starts, and tokens through the model."""
    depth = 2 if isinstance(scheduler, AsyncScheduler) else 1
    for request in requests:
        scheduler.add_request(request)
    steps = hits = tokens = 0
    in_flight: list[Any] = []
    preempted: list[str] = []
    while scheduler.has_unfinished_requests() or in_flight:
        output = scheduler.schedule()
        if output.total_num_scheduled_tokens:
            steps += 1
            in_flight.append((output, sample(scheduler, output, ends)))
        tokens += output.total_num_scheduled_tokens
        hits += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        preempted += output.preempted_req_ids or ()
        if len(in_flight) >= depth or (in_flight and not output.total_num_scheduled_tokens):
            scheduler.update_from_output(*in_flight.pop(0))
        assert steps < 200_000, "it does not end"
    return steps, len(preempted), hits, tokens


def rows_of(kind: str, batch_name: str, batch: Batch, output: int) -> list[Row]:
    specs = KINDS[kind]
    unit = max(spec.block_size for spec in specs)
    hash_size = min(spec.block_size for spec in specs)
    order = sorted(range(batch.num_requests), key=lambda index: batch.prompts[index])
    ends = {str(place): batch.output_lens[index] for place, index in enumerate(order)}

    def run(
        cls: Any, num_blocks: int, max_num_seqs: int, options: Any, batch: Batch = batch
    ) -> tuple[int, int, int, int]:
        sizes = RingSpec(num_blocks, unit, max_num_seqs, 2048, 32768, True, options)
        requests = make_requests(batch, order, hash_size)
        return serve(build(cls, specs, sizes), requests, ends)

    short = replace(batch, output_lens=[1] * batch.num_requests)
    *_, optimum, _ = run(Scheduler, 200_000, 1, None, short)
    num_blocks = memory_for(specs, batch)
    arms = {
        "sorted": (Scheduler, None),
        "ours": (BatchLLMScheduler, {}),
        "sorted, async": (AsyncScheduler, None),
        "ours, async": (AsyncBatchLLMScheduler, {}),
    }
    return [
        Row(kind, batch_name, output, arm, *run(cls, num_blocks, 256, options), optimum)
        for arm, (cls, options) in arms.items()
    ]


def memory_for(specs: list[KVCacheSpec], batch: Batch) -> int:
    """Blocks for ``AT_ONCE`` requests of mean length that share nothing."""
    mean = (batch.prompt_tokens + batch.output_tokens) // batch.num_requests
    each = 0
    for spec in specs:
        tokens = mean
        if isinstance(spec, SlidingWindowSpec):
            tokens = min(mean, spec.sliding_window)
        if isinstance(spec, MambaSpec):
            tokens = 1
        each += -(-tokens // spec.block_size) + isinstance(spec, SlidingWindowSpec)
    smallest = sum(-(-6000 // spec.block_size) for spec in specs)
    return max(each * AT_ONCE, smallest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--num-requests", type=int, default=320)
    parser.add_argument("--outputs", nargs="*", type=int, default=OUTPUTS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows: list[Row] = []
    print(
        "| layers | batch | outputs | sorted: steps (preempted) | ours | ratio | hits: sorted, ours | tokens |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind in arguments.kinds:
        for batch_name, make in (("unshared", unshared), ("grouped", grouped)):
            for output in arguments.outputs:
                batch = make(arguments.num_requests, output)
                found = rows_of(kind, batch_name, batch, output)
                rows += found
                for theirs, ours in (found[:2], found[2:]):
                    print(line(theirs, ours), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def line(theirs: Row, ours: Row) -> str:
    optimum = max(ours.optimum_tokens, 1)
    return (
        f"| {ours.kind} | {ours.batch}{', async' if 'async' in ours.arm else ''} | {ours.outputs} "
        f"| {theirs.steps} ({theirs.preemptions}) | {ours.steps} ({ours.preemptions}) "
        f"| {ours.steps / theirs.steps:.3f} "
        f"| {theirs.hit_tokens / optimum:.3f}, {ours.hit_tokens / optimum:.3f} of optimum "
        f"| {ours.tokens / theirs.tokens:.3f} |"
    )


if __name__ == "__main__":
    main()
