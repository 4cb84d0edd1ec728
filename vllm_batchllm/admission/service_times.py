# SPDX-License-Identifier: Apache-2.0
"""How long a batch of one-shot requests takes, by its size: a part that every batch takes, one per request, and what sizes
differ from that.

A device that reads its weights takes as long for one request as for a few, and in proportion from there on: a straight line
misses the bend, which is the best size of a batch. So sizes that were seen are corrected by what they took.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vllm_batchllm.admission.least_squares import Vector, solve_nonnegative

FORGET = 0.995
"""Weight that a batch loses with every later one."""

LEAST_BATCHES = 16
"""Batches before anything is said."""

MOST_UNSURE = 0.1
"""Relative standard error of the time of half a mean batch beyond which nothing is said: sizes were too much alike."""

MISFIT = 0.15
"""Standard deviation by which sizes are expected to differ from the line, relative: how far a size is believed against it
follows from this, its batches, and how much times scatter."""

MOST_LONGER = 3.0
"""A batch counts as so many times what was foreseen at most: others may have had the machine meanwhile."""

INTAKES, LONGEST_INTAKE_S = 256, 1.0
"""Requests taken in over which their time is averaged; what takes longer than the second was a pause, and does not count."""

LEAST_SEEN = 0.5
"""Weight of its batches from which on a size was seen."""

KNOTS = np.array(
    [
        *range(1, 9),
        *range(10, 21, 2),
        *range(24, 33, 4),
        *range(40, 65, 8),
        *(96, 128, 256, 512, 1024),
    ],
    dtype=float,
)
"""Sizes that are corrected by themselves; between two, in proportion."""


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """Of a batch of b requests: ``fixed_s + b * each_s``, seconds, times the correction of its size.

    corrections: factors at ``KNOTS``; empty for none. intake_s: seconds that the engine's thread needs to take a request in,
    while it runs no batch.
    """

    fixed_s: float
    each_s: float
    corrections: tuple[float, ...] = ()
    intake_s: float = 0.0

    def of(self, num_requests: float) -> float:
        """Seconds for so many requests."""
        line_s = self.fixed_s + num_requests * self.each_s
        if not self.corrections:
            return line_s
        return line_s * float(np.interp(num_requests, KNOTS, self.corrections))

    def up_to(self, num_requests: int) -> tuple[float, ...]:
        """Seconds for 1, 2, ... so many; never fewer for more requests, nor more for each of them.

        Noise could make a small batch look the fastest, and a server that keeps to those under load would never catch up.
        """
        sizes = np.arange(1, num_requests + 1)
        times = self.fixed_s + sizes * self.each_s
        if self.corrections:
            times = times * np.interp(sizes, KNOTS, self.corrections)
        times = sizes * np.minimum.accumulate(times / sizes)
        return tuple(np.maximum.accumulate(times).tolist())

    def differs(self, other: ServiceTime, num_requests: int, share: float) -> bool:
        """Whether a batch of 1, a quarter, half or all of so many takes so much more or less by ``other``, its intake included."""
        for size in (1, num_requests // 4, num_requests // 2, num_requests):
            ours, theirs = (one.of(size) + size * one.intake_s for one in (self, other))
            if abs(ours - theirs) > share * max(ours, theirs):
                return True
        return False


class ServiceTimes:
    """Learns the service time of batches, by least squares to relative errors. O(1) for each batch."""

    def __init__(self) -> None:
        self._normal = np.zeros((2, 2))
        self._moments = np.zeros(2)
        self._weight = self._size = 0.0
        self._num_batches = 0
        self._last: ServiceTime | None = None
        self._knot_weights, self._knot_sizes, self._knot_s = np.zeros((3, len(KNOTS)))
        self._num_intakes, self._intake_s = 0, 0.0

    def served(self, num_requests: int, duration_s: float) -> None:
        """A batch of ``num_requests`` took ``duration_s``."""
        if num_requests < 1 or not 0 < duration_s < 3600:
            return
        if self._last is not None:
            duration_s = min(duration_s, MOST_LONGER * self._last.of(num_requests))
        row = np.array([1.0, num_requests]) / duration_s
        self._normal = FORGET * self._normal + np.outer(row, row)
        self._moments = FORGET * self._moments + row
        self._weight = FORGET * self._weight + 1
        self._size = FORGET * self._size + num_requests
        self._num_batches += 1
        knot = int(np.abs(KNOTS - num_requests).argmin())
        for sums, value in (
            (self._knot_weights, 1.0),
            (self._knot_sizes, num_requests),
            (self._knot_s, duration_s),
        ):
            sums *= FORGET
            sums[knot] += value

    def took_in(self, duration_s: float) -> None:
        """The engine's thread needed ``duration_s`` to take a request in."""
        if not 0 <= duration_s < LONGEST_INTAKE_S:
            return
        if self._num_intakes >= LEAST_BATCHES:
            duration_s = min(duration_s, MOST_LONGER * self._intake_s)
        self._num_intakes = min(self._num_intakes + 1, INTAKES)
        self._intake_s += (duration_s - self._intake_s) / self._num_intakes

    @property
    def learnt(self) -> ServiceTime | None:
        """What is known; None as long as batches were too few, or have always been too much alike."""
        if self._num_batches < LEAST_BATCHES:
            return None
        line = solve_nonnegative(self._normal, self._moments)
        if self._is_sure(line):
            self._last = ServiceTime(float(line[0]), float(line[1]), self._corrections(line))
        elif self._last is not None:
            self._last = self._rescaled(self._last)
        return None if self._last is None else replace(self._last, intake_s=self._intake_s)

    def _rescaled(self, service: ServiceTime) -> ServiceTime:
        """``service`` where sizes are alike by now, as they are when a table always waits for a full batch: its shape, at
        what batches take."""
        seen = np.flatnonzero(self._knot_weights)
        sizes = self._knot_sizes[seen] / self._knot_weights[seen]
        foreseen_s = sum(
            weight * service.of(size)
            for weight, size in zip(self._knot_weights[seen], sizes, strict=True)
        )
        scale = float(self._knot_s.sum() / foreseen_s)
        return ServiceTime(scale * service.fixed_s, scale * service.each_s, service.corrections)

    def _is_sure(self, line: Vector) -> bool:
        """Whether half a mean batch is foreseen well enough."""
        scale = self._normal[0, 0] * self._normal[1, 1]
        determinant = scale - self._normal[0, 1] ** 2
        if determinant <= 1e-9 * scale:
            return False  # one size
        point = np.array([1.0, self._size / self._weight / 2])
        variance = self._variance(line)
        spread = float(point @ np.linalg.solve(self._normal, point))
        return variance * spread <= (MOST_UNSURE * float(point @ line)) ** 2

    def _variance(self, line: Vector) -> float:
        """Of relative errors."""
        errors = self._weight - 2 * self._moments @ line + line @ self._normal @ line
        return max(float(errors), 0.0) / max(self._weight - 2, 1.0)

    def _corrections(self, line: Vector) -> tuple[float, ...]:
        """By how much each size differs from the line; sizes that were not seen as the nearest ones that were."""
        weights = self._knot_weights
        seen = weights >= LEAST_SEEN
        if not seen.any():
            return ()
        foreseen_s = weights[seen] * line[0] + self._knot_sizes[seen] * line[1]
        ratios = self._knot_s[seen] / np.maximum(foreseen_s, 1e-12)
        prior = self._variance(line) / MISFIT**2
        factors = (weights[seen] * ratios + prior) / (weights[seen] + prior)
        return tuple(np.interp(KNOTS, KNOTS[seen], factors).tolist())
