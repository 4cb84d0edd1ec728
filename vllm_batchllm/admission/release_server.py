# SPDX-License-Identifier: Apache-2.0
"""A server that works in batches, told in figures: how many arrive, what a batch takes, what is wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_BATCH = 1024
"""Largest batch that is modelled; memory and time of a solution grow with it."""

LEAST, MOST = 1e-9, 1e15
"""Bounds of all figures, within which nothing over- or underflows."""


@dataclass(frozen=True, slots=True)
class BatchServer:
    """Poisson arrivals at one server that serves 1 batch at a time (arXiv 2501.02181, section III).

    arrival_rate: requests per second. service_ms, energy_mj: milliseconds and millijoules of a batch
    of 1, 2, ... requests, up to the largest batch there is. min_batch: no batch is smaller.
    w_latency, w_power: what a millisecond of mean response time and a watt of mean power count.

    Raises:
        ValueError: a value makes no sense, or two contradict each other; it names them.
    """

    arrival_rate: float
    service_ms: tuple[float, ...]
    energy_mj: tuple[float, ...]
    min_batch: int = 1
    w_latency: float = 1.0
    w_power: float = 0.0

    @classmethod
    def affine(
        cls,
        arrival_rate: float,
        service_ms: tuple[float, float],
        energy_mj: tuple[float, float],
        max_batch: int,
        min_batch: int = 1,
        w_latency: float = 1.0,
        w_power: float = 0.0,
    ) -> BatchServer:
        """A server whose batch takes a fixed part and a part for each request, in this order.

        Raises:
            ValueError: as the class does.
        """
        if not 1 <= max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch {max_batch} is not in 1..{MAX_BATCH}")
        service, energy = (
            tuple(fixed + each * batch for batch in range(1, max_batch + 1))
            for fixed, each in (service_ms, energy_mj)
        )
        return cls(arrival_rate, service, energy, min_batch, w_latency, w_power)

    def __post_init__(self) -> None:
        _check_positive("arrival_rate", self.arrival_rate)
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise ValueError(f"service_ms has {self.max_batch} batch sizes, not 1..{MAX_BATCH}")
        if len(self.energy_mj) != self.max_batch:
            raise ValueError(
                f"energy_mj has {len(self.energy_mj)} batch sizes, service_ms has {self.max_batch}"
            )
        if not 1 <= self.min_batch <= self.max_batch:
            raise ValueError(f"min_batch {self.min_batch} is not in 1..max_batch {self.max_batch}")
        for batch, (service, energy) in enumerate(
            zip(self.service_ms, self.energy_mj, strict=True), start=1
        ):
            _check_positive(f"service_ms of a batch of {batch}", service)
            _check_not_negative(f"energy_mj of a batch of {batch}", energy)
        _check_not_negative("w_latency", self.w_latency)
        _check_not_negative("w_power", self.w_power)
        if not self.w_latency and not self.w_power:
            raise ValueError("w_latency and w_power are both 0: every policy would cost the same")

    @property
    def max_batch(self) -> int:
        return len(self.service_ms)

    @property
    def batch_sizes(self) -> Sequence[int]:
        """Sizes that a batch may have."""
        return range(self.min_batch, self.max_batch + 1)

    @property
    def fastest_batch(self) -> int:
        """The batch that serves most requests per second, the largest of equals."""
        return max(self.batch_sizes, key=lambda batch: (batch / self.service_ms[batch - 1], batch))

    @property
    def max_rate(self) -> float:
        """Requests per second that can be served at most."""
        batch = self.fastest_batch
        return 1e3 * batch / self.service_ms[batch - 1]

    @property
    def load_ratio(self) -> float:
        """Arrivals / what can be served; from 1 on no policy keeps the queue finite."""
        return self.arrival_rate / self.max_rate

    def keeps_up(self, batch: int) -> bool:
        """Whether batches of this size serve more than arrives."""
        return 1e3 * batch / self.service_ms[batch - 1] > self.arrival_rate


def _check_positive(name: str, value: float) -> None:
    if not LEAST <= value <= MOST:
        raise ValueError(f"{name} must be above 0, from {LEAST:g} to {MOST:g}, not {value:g}")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value <= MOST:
        raise ValueError(f"{name} must be from 0 to {MOST:g}, not {value:g}")
