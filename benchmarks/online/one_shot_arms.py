# SPDX-License-Identifier: Apache-2.0
"""Ways to release one-shot requests that ours is compared with, put where our scheduler has its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest.mock import patch

from vllm_batchllm.admission.one_shot_release import OneShotRelease

H = TypeVar("H", bound=Hashable)
FOREVER_S = 3600.0


class FixedRelease(OneShotRelease[H]):
    """Releases all (up to a batch) when the device is free and `num_requests` wait, or one has waited `timeout_s`."""

    def __init__(self, num_requests: int, max_batch: int, timeout_s: float = FOREVER_S) -> None:
        super().__init__(timeout_s, max_batch, lambda rate, service: None)
        self._num_requests, self._most = num_requests, max_batch

    def due(self, now_s: float, *, num_in_service: int, others_run: bool) -> list[H]:
        self.held.tick(now_s)
        if num_in_service:
            return []
        if len(self.held) >= self._num_requests or self.held.is_overdue():
            return self.held.take(self._most)
        return []


@dataclass(frozen=True)
class ReleaseArm:
    """One way to release. num_requests: that are waited for; None for our table. timeout_s: but no longer."""

    name: str
    num_requests: int | None = None
    timeout_s: float = FOREVER_S

    def make(self, max_batch: int) -> FixedRelease[Any]:
        """The holder of an arm that is not ours."""
        assert self.num_requests is not None
        return FixedRelease(self.num_requests, max_batch, self.timeout_s)


OURS, KNOWN = ReleaseArm("ours"), ReleaseArm("known")
"""Our table by what was learnt, and by what is true."""
GREEDY = ReleaseArm("greedy", 1)


def baselines(max_batch: int, timeouts_s: tuple[float, ...]) -> list[ReleaseArm]:
    """Fixed sizes, and time-outs for a full batch."""
    fixed = [ReleaseArm(f"fixed {size}", size) for size in (8, max_batch)]
    waits = [ReleaseArm(f"time-out {1e3 * t:g} ms", max_batch, t) for t in timeouts_s]
    return fixed + waits


@contextmanager
def used(
    arm: ReleaseArm, tell: Callable[[Any], None] = lambda holder: None, table: Any = None
) -> Iterator[None]:
    """Schedulers with `release` that are built inside release as `arm` does, by `table` where there is one; tell: of the
    holder that is made."""

    def make(hold_s: float, max_batch: int, solve: Any) -> OneShotRelease[Any]:
        ours = arm.num_requests is None
        holder = OneShotRelease(hold_s, max_batch, solve) if ours else arm.make(max_batch)
        if table is not None:
            holder.table = lambda now_s: table  # type: ignore[method-assign]
        tell(holder)
        return holder

    with patch("vllm_batchllm.scheduler.releases.OneShotRelease", make):
        yield
