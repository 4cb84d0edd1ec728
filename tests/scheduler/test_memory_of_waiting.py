# SPDX-License-Identifier: Apache-2.0
"""What a waiting request weighs in our scheduler beside itself: no copy of its tokens or hashes.

``benchmarks/engine_memory.py`` measures the whole engine core with 100,000 prompts of 2,000 tokens.
"""

from __future__ import annotations

import gc
import random
import tracemalloc

from fake_engine import make_request, make_scheduler, make_vllm_config

from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

NUM_REQUESTS, NUM_TOKENS = 480, 2_000
MOST_BYTES = 1_500
"""Of each; about 700 where this was written. A copy of the hashes alone would be 1,000 more, of the tokens 16,000."""


def test_a_waiting_request_is_kept_by_reference(llama) -> None:
    scheduler = make_scheduler(BatchLLMScheduler, make_vllm_config(llama))
    rng, requests = random.Random(0), []
    for number in range(NUM_REQUESTS):
        if number % 16 == 0:
            shared = rng.choices(range(1_000), k=NUM_TOKENS // 2)
        own = rng.choices(range(1_000), k=NUM_TOKENS - len(shared))
        requests.append(make_request(str(number), shared + own))
    gc.collect()
    tracemalloc.start()
    try:
        for request in requests:
            scheduler.add_request(request)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / NUM_REQUESTS < MOST_BYTES
    assert len(scheduler.waiting) == NUM_REQUESTS
