# SPDX-License-Identifier: Apache-2.0
"""When requests arrive: drawn from a seed, or as a trace has it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vllm_batchllm.errors import UsageError, unknown_name

POISSON, TRACE, BURSTS = "poisson", "trace", "bursts"
KINDS = (POISSON, TRACE, BURSTS)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How the requests of a batch arrive.

    kind: "poisson" (each by itself), "bursts" (`burst_size` together, bursts as "poisson") or "trace" (as recorded). rate:
    requests per second in the mean; None leaves a trace as it was recorded. seed: of what is drawn.

    Raises:
        UsageError: an unknown kind, a figure out of range, one that is missing, or one that the kind has no use for.
    """

    kind: str
    rate: float | None = None
    burst_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("arrivals", self.kind, KINDS)
        if self.rate is None and self.kind != TRACE:
            raise UsageError(f"--arrivals {self.kind} needs --rate, requests per second")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise UsageError(f"--rate must be above 0 requests per second, not {self.rate:g}")
        if (self.kind == BURSTS) != (self.burst_size is not None):
            raise UsageError(
                f"--arrivals {BURSTS} needs --burst-size, the requests that arrive together"
                if self.kind == BURSTS
                else f"--burst-size {self.burst_size} is for --arrivals {BURSTS}, not {self.kind}"
            )
        if self.burst_size is not None and self.burst_size < 1:
            raise UsageError(f"--burst-size must be at least 1, not {self.burst_size}")

    def times_s(
        self, source: str, num_requests: int, recorded_s: Sequence[float] | None = None
    ) -> list[float]:
        """When each of `num_requests` arrives, seconds from 0; sorted where they are drawn.

        source: of the requests, by name. recorded_s: when it says that they arrived, the first at 0; None if it does not.

        Raises:
            UsageError: times of a trace are wanted and there are none, or none that a rate could stretch.
        """
        if self.kind == TRACE:
            return self._as_recorded(source, recorded_s)
        assert self.rate is not None, "checked above"
        if self.kind == POISSON:
            return poisson_times_s(num_requests, self.rate, self.seed)
        return burst_times_s(num_requests, self.rate, self.burst_size or 1, self.seed)

    def _as_recorded(self, source: str, recorded_s: Sequence[float] | None) -> list[float]:
        if recorded_s is None:
            raise UsageError(
                f"{source} does not say when its requests arrived, so --arrivals {TRACE} cannot be had; take a trace "
                f"with a timestamp in every line, or --arrivals {POISSON} with --rate"
            )
        return list(recorded_s) if self.rate is None else rescaled_s(source, recorded_s, self.rate)

    def describe(self) -> dict[str, Any]:
        """Plain values for reports."""
        return asdict(self)

    def __str__(self) -> str:
        size = "" if self.burst_size is None else f" of {self.burst_size:,}"
        rate = "as recorded" if self.rate is None else f"{self.rate:g} requests/s"
        return f"{self.kind}{size}, {rate}"


def arrivals_of(
    kind: str | None, rate: float | None, burst_size: int | None, seed: int
) -> Arrivals | None:
    """What these options of the command line say; None if nothing, so that all are there at the start. Raises UsageError."""
    if kind is not None:
        return Arrivals(kind, rate, burst_size, seed)
    for option, value in (("--rate", rate), ("--burst-size", burst_size)):
        if value is not None:
            raise UsageError(f"{option} {value:g} says how requests arrive; give --arrivals, too")
    return None


def poisson_times_s(num: int, rate: float, seed: int) -> list[float]:
    """`num` arrivals of a Poisson process: independent exponential gaps of 1 / `rate` seconds in the mean; sorted."""
    gaps_s = np.random.default_rng(seed).exponential(1 / rate, num)
    return [float(at_s) for at_s in np.cumsum(gaps_s)]


def burst_times_s(num: int, rate: float, burst_size: int, seed: int) -> list[float]:
    """`num` arrivals, always `burst_size` together (the last fewer), bursts as a Poisson process of `rate` / `burst_size`; sorted."""
    bursts_s = poisson_times_s(math.ceil(num / burst_size), rate / burst_size, seed)
    return [at_s for at_s in bursts_s for _ in range(burst_size)][:num]


def rescaled_s(source: str, times_s: Sequence[float], rate: float) -> list[float]:
    """The same times, the first at 0, stretched until `rate` requests come per second: between the first and the last
    of n, n - 1 gaps of 1 / `rate` in the mean.

    Raises:
        UsageError: all come at once.
    """
    first_s, last_s = min(times_s), max(times_s)
    if first_s == last_s:
        raise UsageError(
            f"all requests of {source} arrive at once, which no --rate can stretch; leave it out"
        )
    factor = (len(times_s) - 1) / rate / (last_s - first_s)
    return [(at_s - first_s) * factor for at_s in times_s]
