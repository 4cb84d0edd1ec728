# SPDX-License-Identifier: Apache-2.0
"""How long a batch of one-shot requests takes, by its size: a part that every batch takes, and one per request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_batchllm.admission.least_squares import solve_nonnegative

FORGET = 0.99
"""Weight that a batch loses with every later one."""

LEAST_BATCHES = 16
"""Batches before anything is said."""

LEAST_SPREAD = 0.02
"""Variance of the sizes over their mean squared, below which the two parts cannot be told apart."""


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """Of a batch of b requests: ``fixed_s + b * each_s``, seconds."""

    fixed_s: float
    each_s: float

    def of(self, num_requests: int) -> float:
        """Seconds for so many requests."""
        return self.fixed_s + num_requests * self.each_s


class ServiceTimes:
    """Learns the service time of batches, by least squares to relative errors."""

    def __init__(self) -> None:
        self._normal = np.zeros((2, 2))
        self._moments = np.zeros(2)
        self._weight = self._size = self._square = 0.0
        self._num_batches = 0

    def served(self, num_requests: int, duration_s: float) -> None:
        """A batch of ``num_requests`` took ``duration_s``."""
        if num_requests < 1 or not 0 < duration_s < 3600:
            return
        row = np.array([1.0, num_requests]) / duration_s
        self._normal = FORGET * self._normal + np.outer(row, row)
        self._moments = FORGET * self._moments + row
        self._weight = FORGET * self._weight + 1
        self._size = FORGET * self._size + num_requests
        self._square = FORGET * self._square + num_requests**2
        self._num_batches += 1

    @property
    def learnt(self) -> ServiceTime | None:
        """What is known; None as long as batches were too few, or too much alike."""
        if self._num_batches < LEAST_BATCHES:
            return None
        mean = self._size / self._weight
        if self._square / self._weight - mean**2 < LEAST_SPREAD * mean**2:
            return None
        fixed_s, each_s = solve_nonnegative(self._normal, self._moments)
        return ServiceTime(float(fixed_s), float(each_s))
