# SPDX-License-Identifier: Apache-2.0
"""How large a step may be, so that it takes no longer than a target.

Decodes run in every step, and prompts are computed beside them in chunks (Sarathi-Serve, arXiv 2403.02310), so the
time between two tokens is that of a step. A chunk costs more the more of its prompt has been computed before
(Medha, arXiv 2409.17264), so chunks begin large and shrink. Both are one rule here: the largest step whose
predicted time is within the target. A step without decodes holds up nobody's next token, and may be as large as any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_batchllm.admission.step_scatter import StepScatter
from vllm_batchllm.admission.step_times import StepLoad, StepTimes

FLOOR_TOKENS = 16
"""Prompt tokens that every step may have, whatever it takes, so that prompts always progress."""

FIRST_TOKENS = 256
"""Tokens of the first step; as long as larger ones have not been seen, steps at most double."""

OVER_RATIO = 0.0075
"""Share of steps that may take longer than the target: three quarters of what the 99th percentile allows."""

SHRINK = 0.99
"""What a step over the target leaves of the limit."""

LEAST_LIMIT = 0.5
"""Share of the target below which the limit does not fall: what is late then is not the tokens' fault."""

HOPELESS_RATIO = 2.0
"""Where one request that decodes alone takes longer than the target: the multiple of its time that steps are to take
instead. Serving one at a time would not keep the target either."""


@dataclass(frozen=True, slots=True)
class PrefillAhead:
    """A prompt to compute. start: tokens that are there already. num_tokens: still to compute."""

    start: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step may have.

    num_tokens: in all. num_starts: requests that may start; None for any number. is_missed: decodes alone take longer
    than the target. aim_s: what the step is to take at most, seconds; None if no token waits for it.
    """

    num_tokens: int
    num_starts: int | None
    is_missed: bool
    aim_s: float | None = None


class LatencyTarget:
    """Sizes of steps by a target, which may change from step to step.

    Args:
        most_tokens: of any step. floor_tokens: prompt tokens that any step may have.
        times: what steps take; told of every step by :meth:`observe` only.
    """

    def __init__(
        self, most_tokens: int, times: StepTimes, floor_tokens: int = FLOOR_TOKENS
    ) -> None:
        self.times = times
        self.limit_ratio = 1.0
        """Share of a target up to which the predicted time may grow, beside what steps scatter: less than 1 where too many
        took longer all the same."""
        self._scatter = StepScatter()
        self._most, self._floor = most_tokens, floor_tokens
        self._knows_small = False

    def observe(self, load: StepLoad, duration_s: float, target_s: float | None) -> None:
        """A step of ``load`` took ``duration_s``. target_s: its target; None if it had none, or could not be made
        smaller."""
        was_known = self.times.num_steps > 0
        if target_s is not None and was_known:
            self._scatter.add(self.times.predict_s(load), duration_s)
        self.times.observe(load, duration_s)
        self._knows_small |= load.num_tokens <= load.num_requests + self._floor
        if target_s is None or not was_known:
            return
        if duration_s > target_s:
            self.limit_ratio = max(self.limit_ratio * SHRINK, LEAST_LIMIT)
        else:
            growth = (1 - SHRINK) * OVER_RATIO / (1 - OVER_RATIO)
            self.limit_ratio = min(self.limit_ratio * (1 + growth), 1.0)

    def size(
        self,
        target_s: float,
        decodes: StepLoad,
        prefills: Sequence[PrefillAhead],
        ahead: StepLoad,
        kv_of_start: float,
        *,
        least_kv: int = 0,
        is_free: bool = False,
    ) -> StepSize:
        """The largest step with ``decodes`` and as much of ``prefills`` as fits.

        Args:
            target_s: that all but ``OVER_RATIO`` of the steps are to take at most, seconds.
            prefills: in the order in which they are computed; what comes behind the last is like it.
            ahead: ``decodes`` with all that will decode once their prompts are computed.
            kv_of_start: tokens of KV of a request that starts, once it decodes.
            least_kv: of the smallest request of all these.
            is_free: no token waits for this step, whose tokens are not bounded then.
        """
        aim_s = self._within_reach(target_s, least_kv)
        share = max(self.limit_ratio / self._scatter.margin, LEAST_LIMIT)
        base, limit_s = decodes.num_tokens, share * aim_s
        floor = min(base + self._floor, self._most)
        seen = max(2 * self.times.max_tokens, FIRST_TOKENS)
        most = min(self._most, max(seen, floor))
        num_starts = self._num_starts(limit_s, ahead, kv_of_start)
        if is_free:
            return StepSize(self._most, num_starts, False)
        is_missed = self._knows_small and self.times.predict_s(decodes) > target_s
        if not prefills:
            return StepSize(most, num_starts, is_missed, aim_s)

        def fits(num_tokens: int) -> bool:
            load = with_prefills(decodes, prefills, num_tokens)
            return self.times.predict_s(load) <= limit_s

        num_prompt_tokens = largest(fits, max(most - base, 0))
        return StepSize(max(base + num_prompt_tokens, floor), num_starts, is_missed, aim_s)

    def _within_reach(self, target_s: float, least_kv: int) -> float:
        """The target, or more where no step whatever could keep it, which only steps without large prompts tell."""
        if not self._knows_small:
            return target_s
        alone_s = self.times.predict_s(StepLoad(1, 1, least_kv))
        return target_s if alone_s <= target_s else HOPELESS_RATIO * alone_s

    def _num_starts(self, limit_s: float, ahead: StepLoad, kv_of_start: float) -> int | None:
        """Requests that may start beside those ahead; None before anything is known, or if there is no hope."""
        if not self.times.num_steps:
            return None

        def fits(count: int) -> bool:
            more = StepLoad(
                ahead.num_tokens + count,
                ahead.num_requests + count,
                ahead.decode_kv_tokens + round(count * kv_of_start),
                ahead.prefill_pairs,
                ahead.prefill_kv_tokens,
            )
            return self.times.predict_s(more) <= limit_s

        if not ahead.num_requests and not fits(1):
            return None  # not even one alone: waiting would not help
        return largest(fits, self._most)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, where all below one that fits do; 0 if none does."""
    if fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def with_prefills(decodes: StepLoad, prefills: Sequence[PrefillAhead], num_tokens: int) -> StepLoad:
    """``decodes`` with the first ``num_tokens`` of ``prefills``, of which the last stands for all behind it."""
    pairs = kv = count = 0

    def add(start: int, chunk: int, times: int = 1) -> None:
        nonlocal pairs, kv, count
        if chunk > 0:
            pairs += times * pairs_of(start, chunk)
            kv += times * (start + chunk)
            count += times

    left = num_tokens
    for prefill in prefills[:-1]:
        chunk = min(left, prefill.num_tokens)
        add(prefill.start, chunk)
        left -= chunk
    last = prefills[-1]
    whole, rest = divmod(left, max(last.num_tokens, 1))
    add(last.start, last.num_tokens, whole)
    add(last.start, rest)
    return StepLoad(
        decodes.num_tokens + num_tokens,
        decodes.num_requests + count,
        decodes.decode_kv_tokens,
        decodes.prefill_pairs + pairs,
        decodes.prefill_kv_tokens + kv,
    )


def pairs_of(start: int, num_tokens: int) -> int:
    """(query, key) pairs of ``num_tokens`` behind ``start`` that are there."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2
