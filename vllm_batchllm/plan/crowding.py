# SPDX-License-Identifier: Apache-2.0
"""What vLLM computes again on a batch in the order of prefixes, because outputs grow into the memory of those that run.

The simplification: each step gives every running request one token, prompts cost no steps, and whoever fits is let in.
As in vLLM, who came last is sent back when memory is short, and computes its own tokens again; those of its output
are not counted.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from vllm_batchllm.prefix.prefix_order import Ints


def prompt_tokens_again(
    own_tokens: Ints, shared_tokens: Ints, output_tokens: Ints, kv_tokens: int, max_num_seqs: int
) -> int:
    """Prompt tokens that are computed a second time.

    Args:
        own_tokens, shared_tokens: of each prompt, in order: behind what it shares with the one before it, and that.
        output_tokens: of each request, at least 1. kv_tokens: that the cache holds. max_num_seqs: that run at once.

    Steps in which nothing can happen are passed over at once: O(requests + ends * running).
    """
    waiting = deque(range(len(own_tokens)))
    left = output_tokens.astype(np.int64).copy()
    grown = np.zeros(len(left), dtype=np.int64)
    running: list[int] = []
    again = 0
    while waiting or running:
        held = _held(running, own_tokens, shared_tokens, grown)
        while waiting and len(running) < max_num_seqs:
            need = int(own_tokens[waiting[0]] + grown[waiting[0]])
            if running and held + need > kv_tokens:
                break
            held += need + (0 if running else int(shared_tokens[waiting[0]]))
            running.append(waiting.popleft())
        room = (kv_tokens - held) // len(running)
        if room < 1 and len(running) > 1:
            last = running.pop()
            again += int(own_tokens[last])
            waiting.appendleft(last)
            _grow(running, left, grown, 1)
        else:
            steps = min(int(left[running].min()), max(room, 1))
            _grow(running, left, grown, steps)
        running = [request for request in running if left[request] > 0]
    return again


def _held(running: list[int], own: Ints, shared: Ints, grown: Ints) -> int:
    return int(own[running].sum() + grown[running].sum() + shared[running[0]]) if running else 0


def _grow(running: list[int], left: Ints, grown: Ints, steps: int) -> None:
    left[running] -= steps
    grown[running] += steps
