# SPDX-License-Identifier: Apache-2.0
"""What a step costs: known of a platform at first, then learnt from the steps that were run."""

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
"""Starting points until enough has been measured: a small model on two cores, an 8B model on one
data-centre GPU (docs/policies.md)."""


def platform_costs(platform: str) -> StepCosts:
    """Costs to begin with. Raises ValueError that lists the known platforms."""
    try:
        return PLATFORM_COSTS[platform]
    except KeyError:
        known = ", ".join(PLATFORM_COSTS)
        raise ValueError(f"no costs for platform {platform!r}; known: {known}") from None


class StepCostMeter:
    """Learns :class:`StepCosts` from the steps that were run.

    Least squares over (1, prefill tokens, decodes, KV tokens read), drawn to the platform's
    costs as if those had been seen in ``prior_steps`` steps. Old steps fade away.
    """

    _TYPICAL = np.array([1.0, 256.0, 32.0, 16384.0])
    _BATCH = 16

    def __init__(
        self, prior: StepCosts, prior_steps: float = 20.0, memory_steps: int = 1000
    ) -> None:
        self._prior = np.array([prior.step_s, prior.prefill_s, prior.decode_s, prior.kv_s])
        self._prior_matrix = np.diag(prior_steps * self._TYPICAL**2)
        self._keep = 1.0 - 1.0 / memory_steps
        self._matrix = np.zeros((4, 4))
        self._vector = np.zeros(4)
        self._solution = self._prior
        self._pending: list[tuple[float, int, int, int, float]] = []
        self.num_steps = 0

    def observe(self, seconds: float, num_prefill: int, num_decode: int, num_kv: int) -> None:
        """A step took ``seconds``. A pause (ten times what was expected) is cut down."""
        if not seconds > 0:
            return
        self._pending.append((1.0, num_prefill, num_decode, num_kv, seconds))
        self.num_steps += 1
        if len(self._pending) == self._BATCH:
            self._take_in()

    def _take_in(self) -> None:
        """Add the pending steps to the sums; together, as one by one would cost the step."""
        observed = np.array(self._pending)
        rows, seconds = observed[:, :4], observed[:, 4]
        if self.num_steps > len(self._pending):
            seconds = np.minimum(seconds, 10.0 * (rows @ self._solution))
        self._pending.clear()
        kept = self._keep ** np.arange(len(rows), -1, -1.0)
        weighted = rows * kept[1:, None]
        self._matrix = kept[0] * self._matrix + weighted.T @ rows
        self._vector = kept[0] * self._vector + seconds @ weighted
        self._solution = self._solve()

    def costs(self) -> StepCosts:
        """The best estimate so far; none of the figures is negative."""
        if self._pending:
            self._take_in()
        return StepCosts(*map(float, self._solution))

    def _solve(self) -> Vector:
        matrix = self._matrix + self._prior_matrix
        return solve_nonnegative(matrix, self._vector + self._prior_matrix @ self._prior)


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


def is_worth_a_try(costs: StepCosts, num_tokens: int, num_steps: int) -> bool:
    """Whether starting ``num_steps`` earlier saves more than computing ``num_tokens`` again costs."""
    return num_tokens * costs.prefill_s <= num_steps * costs.step_s
