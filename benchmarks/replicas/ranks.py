# SPDX-License-Identifier: Apache-2.0
"""What data-parallel ranks compute twice, with vLLM's balancer alone and with rank affinity.

    python benchmarks/replicas/ranks.py --workload micro-2000-200-d16 --ranks 4 --servers 1 --in-flight 64

The balancers are vLLM's own client objects, one for each API server, without sockets and processes. Requests come one by one in the
workload's shuffled order, each to an API server at random; when ``--in-flight`` are unfinished, every rank finishes
one. Ranks report their loads every ``REPORT_EVERY`` requests. Memory is unlimited, so a rank computes every block that it
is sent once, and what several ranks compute is computed twice. No time is measured: figures repeat exactly.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # tests import this, and servers that they start inherit the environment
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import DPLBAsyncMPClient

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.plugin import rank_choice
from vllm_batchllm.prefix.best_saving import optimal_saving
from vllm_batchllm.workloads.catalog import make_workload

REPORT_EVERY = 50
BLOCK_SIZE = 16
PARAMS = SamplingParams(max_tokens=1)


def balancer(num_ranks: int, server: int, num_servers: int, is_ours: bool) -> DPLBAsyncMPClient:
    """vLLM's client of one API server, as its constructor leaves it but for sockets and processes."""
    made = DPLBAsyncMPClient.__new__(DPLBAsyncMPClient)
    made.vllm_config = SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=BATCHLLM_SCHEDULER if is_ours else None),
        parallel_config=SimpleNamespace(distributed_executor_backend="mp"),
        additional_config={},
    )
    made.client_count, made.client_index = num_servers, server
    made.core_engines = [rank.to_bytes(2, "little") for rank in range(num_ranks)]
    made.lb_engines = [[0, 0, 0.0] for _ in range(num_ranks)]
    made.reqs_in_flight, made.engine_inflight = {}, Counter()
    made.streaming_reqs = set()
    made.eng_start_index = num_ranks * server // num_servers
    return made


@dataclass
class Ranks:
    """Where requests went, and who is still there."""

    prompts: list[list[list[int]]]
    queues: list[deque[tuple[DPLBAsyncMPClient, str]]]
    ahead: list[float] = field(default_factory=list)

    def finish_one_each(self) -> None:
        for queue in self.queues:
            if queue:
                client, name = queue.popleft()
                client.engine_inflight[client.reqs_in_flight.pop(name)] -= 1

    def look(self) -> None:
        """Note how far the busiest rank is ahead of the mean, requests."""
        loads = list(map(len, self.queues))
        self.ahead.append(max(loads) - sum(loads) / len(loads))


def route(
    prompts: list[list[int]], num_ranks: int, num_servers: int, in_flight: int, is_ours: bool
) -> Ranks:
    """Send ``prompts`` in their order; ``in_flight`` = 0 lets none finish, as when a batch comes at once."""
    clients = [balancer(num_ranks, each, num_servers, is_ours) for each in range(num_servers)]
    ranks = Ranks([[] for _ in range(num_ranks)], [deque() for _ in range(num_ranks)])
    draw = random.Random(0)
    for number, prompt in enumerate(prompts):
        if number % REPORT_EVERY == 0:
            for client in clients:
                client.lb_engines = [[0, len(queue), 0.0] for queue in ranks.queues]
        while in_flight and sum(map(len, ranks.queues)) >= in_flight:
            ranks.finish_one_each()
        client, name = draw.choice(clients), f"{number}"
        rank = client.core_engines.index(client.get_core_engine_for_request(_request(name, prompt)))
        ranks.prompts[rank].append(prompt)
        ranks.queues[rank].append((client, name))
        ranks.look()
    return ranks


def _request(name: str, tokens: list[int]) -> EngineCoreRequest:
    nothing: dict[str, Any] = dict.fromkeys(
        ("mm_features", "pooling_params", "lora_request", "cache_salt", "data_parallel_rank")
    )
    return EngineCoreRequest(
        request_id=name,
        prompt_token_ids=tokens,
        sampling_params=PARAMS,
        arrival_time=0.0,
        **nothing,
    )


def row(label: str, ranks: Ranks, best: int) -> str:
    """What the ranks compute in all, and the most that one does, in prompt tokens."""
    computed = []
    for prompts in ranks.prompts:
        saving = optimal_saving(prompts, BLOCK_SIZE)
        computed.append(saving.prompt_tokens - saving.saved_tokens)
    total, share = sum(computed), best / len(computed)
    mean_ahead = sum(ranks.ahead) / len(ranks.ahead)
    return (
        f"| {label} | {total:,} | {total - best:,} | {max(computed) / share:.2f} | "
        f"{max(ranks.ahead):.0f}, {mean_ahead:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", action="append", required=True)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=0, help="0: all at once")
    parser.add_argument("--scale", type=float, default=1.0)
    args = parser.parse_args()
    rank_choice.install()
    for name in args.workload:
        batch = make_workload(name, scale=args.scale)
        saving = optimal_saving(batch.prompts, BLOCK_SIZE)
        best = saving.prompt_tokens - saving.saved_tokens
        print(
            f"\n{batch.name}: {batch.num_requests} requests, {saving.prompt_tokens:,} prompt tokens, "
            f"{best:,} at one rank; {args.ranks} ranks, {args.servers} API servers, "
            f"{args.in_flight or 'all'} in flight\n"
        )
        print("| balancer | tokens computed | of these twice | busiest rank | most, mean ahead |")
        print("| --- | --- | --- | --- | --- |")
        for label, is_ours in (("vLLM's", False), ("rank affinity", True)):
            ranks = route(batch.prompts, args.ranks, args.servers, args.in_flight, is_ours)
            print(row(label, ranks, best))


if __name__ == "__main__":
    main()
