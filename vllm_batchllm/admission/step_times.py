# SPDX-License-Identifier: Apache-2.0
"""How long a step will take, learnt from those that were run.

A step reads all weights and computes with them, which takes as long as whichever takes longer; attention reads the KV
of decodes and computes the pairs of prefills; the host has work for each request. So a step's time is a sum of costs,
each for an amount of work, with a kink in the number of tokens: costs that grow from some number of tokens on stand
for it. They are fitted by least squares with none below zero, to relative errors, and old steps are forgotten.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_batchllm.admission.least_squares import Vector, solve_nonnegative

KINKS = (96, 128, 192, 256, 320, 384, 512, 1024, 2048)
"""Tokens from which on a further token may cost more: where devices stop waiting for memory, and the largest
steps that vLLM captures as graphs."""

FORGET = 0.998
"""Weight that a step loses with every later one: of 500 steps about a third is left."""

STEPS_PER_FIT, MOST_PER_FIT = 8, 32
"""Steps between two fits: the first once there are some, the last once so many were seen that a few more change little."""

_PRIOR = 1e-6
"""Relative to the work seen: makes costs of work that was never done come out as zero, and leaves what cannot be told
apart to the parts that every step has. So a second request is tried where only single ones were seen."""

_NUM_FIXED = 2
"""Leading parts that do not grow with the work."""


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step does.

    num_tokens: through the layers. num_requests: scheduled. decode_kv_tokens: tokens of KV that requests with one
    token read. prefill_pairs: (query, key) pairs of the others. prefill_kv_tokens: tokens of KV that these read.
    """

    num_tokens: int = 0
    num_requests: int = 0
    decode_kv_tokens: int = 0
    prefill_pairs: int = 0
    prefill_kv_tokens: int = 0


class StepTimes:
    """Learns what steps cost.

    Args:
        graph_sizes: tokens of the steps that are captured as CUDA graphs, ascending: a smaller step is padded
            to the next one, a larger one is launched kernel by kernel.
    """

    def __init__(self, graph_sizes: Sequence[int] = ()) -> None:
        self._sizes = sorted(graph_sizes)
        count = len(self._features(StepLoad()))
        self._normal = np.zeros((count, count))
        self._moments = np.zeros(count)
        self._work = np.zeros(count)
        self._costs: list[float] = [0.0] * count
        self._kinks: list[tuple[int, float]] = []
        """Those that cost something, with what they cost."""
        self._num_unfitted = 0
        self.num_steps = 0
        """Seen so far."""
        self.max_tokens = 0
        """Of any step seen so far."""

    def observe(self, load: StepLoad, duration_s: float) -> None:
        """A step of ``load`` took ``duration_s``; a duration that no clock can have measured is ignored."""
        if not (0 < duration_s < 3600) or not load.num_tokens:
            return
        row = np.asarray(self._features(load))
        self._work = np.maximum(self._work, row)
        row = row / duration_s
        self._normal *= FORGET
        self._normal += np.outer(row, row)
        self._moments *= FORGET
        self._moments += row
        self.num_steps += 1
        self.max_tokens = max(self.max_tokens, load.num_tokens)
        self._num_unfitted += 1

    def predict_s(self, load: StepLoad) -> float:
        """Seconds that a step of ``load`` will take; grows with every part of it. 0 before any was seen."""
        if self._is_fit_due():
            self._fit()
        costs = self._costs
        num_tokens, has_graph = self._padded(load.num_tokens)
        seconds = costs[0] if has_graph else costs[0] + costs[1]
        seconds += costs[2] * num_tokens
        for kink, cost in self._kinks:
            if num_tokens > kink:
                seconds += cost * (num_tokens - kink)
        return (
            seconds
            + costs[-4] * load.num_requests
            + costs[-3] * load.decode_kv_tokens
            + costs[-2] * load.prefill_pairs
            + costs[-1] * load.prefill_kv_tokens
        )

    def _is_fit_due(self) -> bool:
        if self.num_steps < 64:
            return self._num_unfitted > 0
        return self._num_unfitted >= min(max(self.num_steps // 32, STEPS_PER_FIT), MOST_PER_FIT)

    @property
    def costs(self) -> Vector:
        """Of the parts of a step, seconds; for tests."""
        return np.asarray(self._costs)

    def _fit(self) -> None:
        """Solve for costs, work scaled by the most that was seen of it."""
        scale = np.where(self._work > 0, self._work, 1.0)
        normal = self._normal / np.outer(scale, scale)
        growing = np.arange(_NUM_FIXED, len(scale))
        normal[growing, growing] += _PRIOR * max(float(np.trace(normal)), 1e-30)
        costs = solve_nonnegative(normal, self._moments / scale) / scale
        self._costs = [float(cost) for cost in np.where(self._work > 0, costs, 0.0)]
        parts = zip(KINKS, self._costs[_NUM_FIXED + 1 :], strict=False)
        self._kinks = [(kink, cost) for kink, cost in parts if cost]
        self._num_unfitted = 0

    def _features(self, load: StepLoad) -> list[float]:
        num_tokens, has_graph = self._padded(load.num_tokens)
        return [
            1.0,
            0.0 if has_graph else 1.0,
            float(num_tokens),
            *(max(num_tokens - kink, 0.0) for kink in KINKS),
            float(load.num_requests),
            float(load.decode_kv_tokens),
            float(load.prefill_pairs),
            float(load.prefill_kv_tokens),
        ]

    def _padded(self, num_tokens: int) -> tuple[int, bool]:
        """Tokens that go through the layers, and whether a graph does it."""
        if not self._sizes or num_tokens > self._sizes[-1]:
            return num_tokens, not self._sizes
        return self._sizes[bisect_left(self._sizes, num_tokens)], True
