# SPDX-License-Identifier: Apache-2.0
"""What a step costs, linearly."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What a step costs, seconds.

    step_s: whatever it does. prefill_s: per prompt token. decode_s: per request that produces
    a token. kv_s: per token of KV that decoding reads.
    """

    step_s: float
    prefill_s: float
    decode_s: float = 0.0
    kv_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be 0 seconds or more, got {value}")


PLATFORM_COSTS = {
    "cpu": StepCosts(step_s=1.3e-2, prefill_s=4.2e-5, decode_s=1.2e-4),
    "cuda": StepCosts(step_s=1e-2, prefill_s=8e-5, decode_s=2e-5, kv_s=8e-8),
}
"""A small model on two cores, an 8B model on one data-centre GPU (docs/policies.md)."""
