# SPDX-License-Identifier: Apache-2.0
"""Batches of requests that are planned and never run: hash lists, without the tokens.

A million prompts of 2,200 tokens do not fit into memory as Python lists. So prompts are drawn one
by one in order of arrival and hashed with vLLM's own hasher, the shared prefix anew for every
request as in vLLM, and only the hash lists stay. Every request has its own hash objects, as in
vLLM, so equality is compared by content. Hash lists can also be made without tokens; they have
the same sharing and cost a tenth.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from vllm_batchllm.workloads.catalog import make_workload

HASH_BYTES = 32
PREFIX_TOKENS, SUFFIX_TOKENS, OUTPUT_TOKENS, DEGREE = 2000, 200, 100, 16
"""The main shape of the paper."""
VOCABULARY = 128_256


@dataclass(eq=False, slots=True)
class PlannedRequest:
    """What a queue reads of a request, and nothing else."""

    request_id: str
    block_hashes: list[bytes]
    num_tokens: int
    max_tokens: int = OUTPUT_TOKENS
    skip_reading_prefix_cache: bool = False
    resumable: bool = False
    priority: int = 0
    has_encoder_inputs: bool = False


def main_prompts(num_requests: int) -> Iterator[list[int]]:
    """Prompts of 2,000 shared and 200 own tokens, 16 a prefix, in random order of arrival."""
    rng = np.random.default_rng(0)
    shape = (-(-num_requests // DEGREE), PREFIX_TOKENS)
    prefixes = rng.integers(0, VOCABULARY, shape, dtype=np.int32)
    for number in rng.permutation(num_requests):
        own = rng.integers(0, VOCABULARY, SUFFIX_TOKENS, dtype=np.int32)
        yield prefixes[number // DEGREE].tolist() + own.tolist()


def industry_prompts(num_requests: int) -> list[list[int]]:
    """Prompts of the `industry` workload at scale 1, shuffled."""
    batch = make_workload("industry", scale=1, num_requests=num_requests, vocab_size=VOCABULARY)
    return batch.prompts


def hashed(prompts: Iterable[list[int]], block_size: int) -> tuple[list[PlannedRequest], float]:
    """Requests with vLLM's block hashes (SHA-256), and the CPU seconds that hashing took.

    Drawing the prompts and building vLLM's request objects are not in the seconds.
    """
    init_none_hash(sha256)
    hasher = get_request_block_hasher(block_size, sha256)
    params = SamplingParams(max_tokens=OUTPUT_TOKENS)
    requests, seconds = [], 0.0
    for number, prompt in enumerate(prompts):
        request = Request(str(number), prompt, params, None)
        start = time.process_time()
        hashes = hasher(request)
        seconds += time.process_time() - start
        requests.append(PlannedRequest(request.request_id, hashes, request.num_tokens))
    return requests, seconds


def main_requests(num_requests: int, block_size: int) -> list[PlannedRequest]:
    """The main shape with made-up hashes."""
    num_tokens = PREFIX_TOKENS + SUFFIX_TOKENS
    num_shared, num_blocks = PREFIX_TOKENS // block_size, num_tokens // block_size
    order = list(range(num_requests))
    random.Random(0).shuffle(order)
    requests = []
    for number in order:
        runs = (
            _run(number // DEGREE, 0, num_shared),
            _run(number, 1, num_blocks - num_shared),
        )
        requests.append(PlannedRequest(str(number), _split(b"".join(runs)), num_tokens))
    return requests


def nested_requests(num_requests: int, num_blocks: int, block_size: int) -> list[PlannedRequest]:
    """Shuffled requests under three nested levels: about 1000, 100 and 10 members a prefix."""
    quarter = num_blocks // 4
    requests = []
    for number in range(num_requests):
        levels = (number // 1000, number // 100, number // 10, number)
        runs = [_run(level, which, quarter) for which, level in enumerate(levels)]
        num_tokens = num_blocks * block_size + number % block_size
        requests.append(PlannedRequest(str(number), _split(b"".join(runs)), num_tokens))
    random.Random(0).shuffle(requests)
    return requests


def _run(level: int, which: int, num_blocks: int) -> bytes:
    seed = blake2b(f"{which}/{level}".encode(), digest_size=HASH_BYTES - 4).digest()
    return b"".join(seed + at.to_bytes(4, "big") for at in range(num_blocks))


def _split(joined: bytes) -> list[bytes]:
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]
