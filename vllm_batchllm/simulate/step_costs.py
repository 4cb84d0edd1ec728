# SPDX-License-Identifier: Apache-2.0
"""What a step costs, linearly, and the fit of such costs to steps that were run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

Vector = np.ndarray[tuple[int], np.dtype[np.float64]]
Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]


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


def solve_nonnegative(matrix: Matrix, vector: Vector) -> Vector:
    """Solve the normal equations of least squares; what would be negative is left out, as 0."""
    free = np.ones(len(vector), dtype=bool)
    solution = np.zeros(len(vector))
    while free.any():
        solution[:] = 0.0
        solution[free] = np.linalg.solve(matrix[np.ix_(free, free)], vector[free])
        if (solution >= 0).all():
            break
        free &= solution > 0
    return solution
