# SPDX-License-Identifier: Apache-2.0
"""Cost of planning at scale: every request of a batch goes into the queue, and out in its order.

    python benchmarks/forest_scale.py --requests 1000000 --order dfs
    python benchmarks/forest_scale.py --shape main --requests 1000000 --order dfs --through queue
    python benchmarks/forest_scale.py --shape main --hashes vllm --requests 100000 --order dfs

``--shape nested``: three levels of sharing; ``main``: 2,000 shared and 200 own tokens, degree 16;
``industry``: the workload of that name. ``--through line`` measures the forest and what decides
around it; ``queue`` all that the scheduler asks of its queue, watched by the block pool, so all
that is added to vLLM's deque. ``--hashes vllm`` hashes real prompts and times it, apart.

Prints CPU time of this one-threaded process and resident memory beside the hash lists, as JSON
lines; times are medians over ``--repeats``, memory is that of the first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import psutil
from hashed_requests import (
    PlannedRequest,
    hashed,
    industry_prompts,
    main_prompts,
    main_requests,
    nested_requests,
)

from vllm_batchllm.kv_cache.block_pool import PrefixAwareBlockPool
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.planned_group_queue import queue_class_for
from vllm_batchllm.ordering.policies import ORDERS, make_order
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue

SHAPES = ("nested", "main", "industry")
STEP_ADMISSIONS = 256
"""Requests drained between two steps, at the end of which the queue forgets whom it showed."""


class Planning(NamedTuple):
    """Insert and drain of one batch: CPU seconds, and bytes held when all were in."""

    insert_s: float
    drain_s: float
    memory: int


def make_batch(args: argparse.Namespace) -> tuple[list[PlannedRequest], float | None]:
    """The requests, and the seconds that hashing took; None where hashes are made up."""
    if args.hashes == "vllm":
        draw = {"main": main_prompts, "industry": industry_prompts}[args.shape]
        return hashed(draw(args.requests), args.block_size)
    if args.shape == "main":
        return main_requests(args.requests, args.block_size), None
    return nested_requests(args.requests, args.blocks, args.block_size), None


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def plan_by_line(requests: Sequence[PlannedRequest], order: str, block_size: int) -> Planning:
    """Through an :class:`GroupQueue`: the forest, and the choice among trees."""
    policy = make_order(order)
    line: GroupQueue[PlannedRequest] = queue_class_for(policy)(policy, block_size)

    def insert() -> None:
        for rank, request in enumerate(requests):
            line.add(request, rank)

    def drain() -> None:
        while line:
            line.remove(line.peek(), admitted=True)

    return _timed(insert, drain)


def plan_by_queue(requests: Sequence[Any], order: str, block_size: int) -> Planning:
    """Through the scheduler's queue, with a block pool that follows every change."""
    pool = PrefixAwareBlockPool(2, True, block_size)
    queue = PrefixGroupQueue(make_order(order), block_size, pool=pool)

    def insert() -> None:
        for request in requests:
            queue.add_request(request)

    def drain() -> None:
        while queue:
            for _ in range(min(STEP_ADMISSIONS, len(queue))):
                queue.peek_request()
                queue.pop_request()
            queue.levels.clear()

    return _timed(insert, drain)


def _timed(insert: Callable[[], None], drain: Callable[[], None]) -> Planning:
    before = resident_bytes()
    gc.freeze()  # the hash lists are the requests' own; vLLM's engine core freezes its heap too
    start = time.process_time()
    insert()
    inserted = time.process_time()
    memory = resident_bytes() - before
    draining = time.process_time()
    drain()
    drained = time.process_time()
    gc.unfreeze()
    return Planning(inserted - start, drained - draining, memory)


PLANNERS = {"line": plan_by_line, "queue": plan_by_queue}


def measure(
    requests: Sequence[PlannedRequest],
    order: str,
    block_size: int,
    through: str = "line",
    repeats: int = 1,
) -> dict[str, Any]:
    """Insert everything, then drain it; times in seconds, memory in GB."""
    runs = [PLANNERS[through](requests, order, block_size) for _ in range(repeats)]
    totals = [run.insert_s + run.drain_s for run in runs]
    total = statistics.median(totals)
    return {
        "order": order,
        "through": through,
        "insert_s": round(statistics.median(run.insert_s for run in runs), 5),
        "drain_s": round(statistics.median(run.drain_s for run in runs), 5),
        "total_s": round(total, 5),
        "totals_s": [round(each, 5) for each in totals],
        "mean_us_per_request": round(total / len(requests) * 1e6, 2),
        "memory_gb_beside_hash_lists": round(runs[0].memory / 1e9, 4),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="nested")
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=128, help="a request; shape nested only")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--hashes", choices=("made", "vllm"), default="made")
    parser.add_argument("--order", choices=[*ORDERS, "all"], default="all")
    parser.add_argument("--through", choices=[*PLANNERS], default="line")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(argv)
    if (args.shape, args.hashes) in (("nested", "vllm"), ("industry", "made")):
        parser.error(f"--shape {args.shape} does not go with --hashes {args.hashes}")
    empty = resident_bytes()
    requests, hashing_s = make_batch(args)
    about = {
        "shape": args.shape,
        "num_requests": len(requests),
        "num_prompt_tokens": sum(request.num_tokens for request in requests),
        "num_blocks": sum(len(request.block_hashes) for request in requests),
        "hashing_s": None if hashing_s is None else round(hashing_s, 5),
        "hash_lists_gb": round((resident_bytes() - empty) / 1e9, 4),
    }
    for order in ORDERS if args.order == "all" else [args.order]:
        row = measure(requests, order, args.block_size, args.through, args.repeats)
        print(json.dumps(about | row), flush=True)


if __name__ == "__main__":
    main()
