# SPDX-License-Identifier: Apache-2.0
"""How long requests took: when their tokens came, and percentiles over requests."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of times, seconds; between two values as numpy's, linearly."""

    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float

    @classmethod
    def of(cls, values_s: Numbers) -> Spread | None:
        """Of these; None of nothing."""
        if not len(values_s):
            return None
        return cls(*np.percentile(values_s, (50, 90, 99, 100)).tolist())


@dataclass(frozen=True, slots=True)
class Latencies:
    """What requests waited for.

    ttft: from the arrival to the first token. tbt: every time between two tokens that follow each other, of all requests
    together; None where each has one token. end_to_end: from the arrival to the last token. mean_end_to_end_s: its mean.
    """

    num_requests: int
    ttft: Spread
    tbt: Spread | None
    end_to_end: Spread
    mean_end_to_end_s: float


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """When each request came, and got its first and last token; seconds, by its place in the batch.

    gaps_s: times between tokens that follow each other. gap_owners: of which request each of them is.
    """

    arrivals_s: Numbers
    first_s: Numbers
    last_s: Numbers
    gaps_s: Numbers
    gap_owners: np.ndarray[Any, Any]

    def latencies(self, chosen: Mask | None = None) -> Latencies:
        """Of the requests at the places where `chosen` holds (at least one); None for all."""
        if chosen is None:
            chosen = np.ones(len(self.arrivals_s), dtype=bool)
        arrivals_s = self.arrivals_s[chosen]
        ends_s = self.last_s[chosen] - arrivals_s
        ttft, whole = Spread.of(self.first_s[chosen] - arrivals_s), Spread.of(ends_s)
        assert ttft is not None and whole is not None, "latencies of no request"
        tbt = Spread.of(self.gaps_s[chosen[self.gap_owners]])
        return Latencies(len(arrivals_s), ttft, tbt, whole, float(ends_s.mean()))

    def by_class(self, classes: Sequence[int]) -> dict[int, Latencies]:
        """Of the requests of each class; classes: of every request."""
        of_each = np.asarray(classes)
        return {int(one): self.latencies(of_each == one) for one in np.unique(of_each)}


class TokenClock:
    """Takes down when tokens come."""

    def __init__(self, arrivals_s: Sequence[float]) -> None:
        self._arrivals_s = arrivals_s
        self._first_s = [math.nan] * len(arrivals_s)
        self._last_s = [math.nan] * len(arrivals_s)
        self._gaps_s, self._owners = array("d"), array("q")

    def tokens(self, request: int, num_tokens: int, at_s: float) -> None:
        """`request` gets so many tokens at once."""
        for _ in range(num_tokens):
            last_s = self._last_s[request]
            if math.isnan(last_s):
                self._first_s[request] = at_s
            else:
                self._gaps_s.append(at_s - last_s)
                self._owners.append(request)
            self._last_s[request] = at_s

    def times(self) -> TokenTimes:
        """All that was taken down."""
        return TokenTimes(
            np.asarray(self._arrivals_s, dtype=np.float64),
            np.asarray(self._first_s, dtype=np.float64),
            np.asarray(self._last_s, dtype=np.float64),
            np.asarray(self._gaps_s, dtype=np.float64),
            np.asarray(self._owners, dtype=np.int64),
        )
