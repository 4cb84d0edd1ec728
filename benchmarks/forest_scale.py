# SPDX-License-Identifier: Apache-2.0
"""Cost of the forest and the queue at scale: one million requests, three levels of sharing.

    python benchmarks/forest_scale.py --requests 1000000 --blocks 128

Every request has its own hash objects, as in vLLM, so equality is compared by content. Prints
CPU time of this one-threaded process, mean cost per request and resident memory beside the hash
lists, as JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from dataclasses import dataclass
from hashlib import blake2b

import psutil

from vllm_batchllm.schedule.line import AdmissionLine
from vllm_batchllm.schedule.order import ORDERS, make_order
from vllm_batchllm.schedule.planned_line import line_for

HASH_BYTES = 32


@dataclass(eq=False, slots=True)
class FakeRequest:
    """What a line reads of a request, and nothing else."""

    block_hashes: list[bytes]
    num_tokens: int
    max_tokens: int = 100
    skip_reading_prefix_cache: bool = False
    resumable: bool = False


def make_requests(num_requests: int, num_blocks: int, block_size: int) -> list[FakeRequest]:
    """Shuffled requests under three nested levels: about 1000, 100 and 10 members a prefix."""
    quarter = num_blocks // 4
    requests = []
    for number in range(num_requests):
        levels = (number // 1000, number // 100, number // 10, number)
        runs = [_run(level, which, quarter) for which, level in enumerate(levels)]
        joined = b"".join(runs)
        hashes = [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]
        requests.append(FakeRequest(hashes, num_blocks * block_size + number % block_size))
    random.Random(0).shuffle(requests)
    return requests


def _run(level: int, which: int, num_blocks: int) -> bytes:
    seed = blake2b(f"{which}/{level}".encode(), digest_size=HASH_BYTES - 4).digest()
    return b"".join(seed + at.to_bytes(4, "big") for at in range(num_blocks))


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def measure(requests: list[FakeRequest], order: str, block_size: int) -> dict[str, float | str]:
    """Insert everything, then drain it; times in seconds, memory in GB."""
    policy = make_order(order)
    line: AdmissionLine[FakeRequest] = line_for(policy)(policy, block_size)
    before = resident_bytes()
    gc.freeze()  # the hash lists are the requests' own; vLLM's engine core freezes its heap too
    start = time.process_time()
    for rank, request in enumerate(requests):
        line.add(request, rank)
    inserted = time.process_time()
    memory = resident_bytes() - before
    draining = time.process_time()
    while line:
        line.remove(line.peek(), admitted=True)
    drained = time.process_time()
    gc.unfreeze()
    total = (inserted - start) + (drained - draining)
    return {
        "order": order,
        "insert_s": round(inserted - start, 2),
        "drain_s": round(drained - draining, 2),
        "total_s": round(total, 2),
        "mean_us_per_request": round(total / len(requests) * 1e6, 2),
        "memory_gb_beside_hash_lists": round(memory / 1e9, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--blocks", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--order", choices=[*ORDERS, "all"], default="all")
    args = parser.parse_args()
    requests = make_requests(args.requests, args.blocks, args.block_size)
    for order in ORDERS if args.order == "all" else [args.order]:
        row = {"num_requests": len(requests), "num_blocks": args.blocks}
        print(json.dumps(row | measure(requests, order, args.block_size)), flush=True)


if __name__ == "__main__":
    main()
