# SPDX-License-Identifier: Apache-2.0
"""Whether to start a request that will be sent back before it ends.

Idle memory has a price, too: the same outputs take more steps. A request that starts beside ``n``
others, and is sent back ``t`` steps later when memory ends, has produced ``t`` tokens that the batch
needs anyway, which saves ``t / (n + 1)`` steps. What it pays is that its own tokens go through the
model again. So few large requests are started as by vLLM, and many small ones wait.
"""

from __future__ import annotations

TOKENS_PER_STEP = 100
"""Prompt tokens that a step of decoding is worth. A step reads all weights, a prompt token computes with
them once, so it takes as long as what a device computes per byte that it reads: 153 by the data sheet of an
A100, 295 of an H100, about 300 measured with a small model on two cores. Less than that, since the
one who was sent back also delays others (docs/policies.md). A figure that were measured would differ between
ranks that must decide alike."""


def is_worth_starting(num_steps: int, num_running: int, num_lost_tokens: float) -> bool:
    """Whether ``num_steps`` of a request beside ``num_running`` others are worth what it loses.

    num_lost_tokens: of its own, that go through the model again after it was sent back.
    """
    return num_steps * TOKENS_PER_STEP > (num_running + 1) * num_lost_tokens
