# SPDX-License-Identifier: Apache-2.0
"""How many tokens a request will produce, learned from those that have finished.

Requests over one document tend to answer alike, so what was seen near a request counts most:
in its own prefix group, then in the groups above it, then anywhere. Each level is shrunk
towards the one above it, so that three lucky samples do not outweigh three hundred.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is certain about an output, tokens.

    max_tokens: no output is longer. num_generated: produced already, so the output is longer
    than that. hint: what the user expects, or None.
    """

    max_tokens: int
    num_generated: int = 0
    hint: int | None = None


class _Recent:
    """The latest lengths of one group, in order of arrival and of size."""

    __slots__ = ("arrivals", "num_seen", "sorted")

    def __init__(self, capacity: int) -> None:
        self.num_seen = 0
        self.arrivals: deque[int] = deque(maxlen=capacity)
        self.sorted: list[int] = []

    def add(self, length: int) -> None:
        arrivals = self.arrivals
        if len(arrivals) == arrivals.maxlen:
            del self.sorted[bisect_left(self.sorted, arrivals[0])]
        self.num_seen += 1
        arrivals.append(length)
        insort(self.sorted, length)


class LengthEstimator:
    """Quantiles of the output length of a request.

    The distribution at a level is that of its own latest samples, mixed with the level above
    as if that had contributed ``shrinkage`` samples. Above the topmost level stands a single
    pseudo-sample beyond everything seen (``prior_tokens`` at first): this is the small-sample
    correction of conformal prediction, and the answer before anything has finished.

    Args:
        prior_tokens: length expected before anything is known, tokens.
        shrinkage: weight of the level above, in samples.
        samples_per_group, samples_overall: latest lengths kept; older ones are forgotten, so
            the estimate follows a stream that changes.
        max_groups: groups kept; the one unused for longest is forgotten first.

    Memory is O(max_groups * samples_per_group); a prediction costs O(depth * log^2).
    """

    def __init__(
        self,
        *,
        prior_tokens: int = 256,
        shrinkage: float = 16.0,
        samples_per_group: int = 64,
        samples_overall: int = 1024,
        max_groups: int = 4096,
    ) -> None:
        self._prior_tokens = at_least_one("prior_tokens", prior_tokens)
        self._samples_per_group = at_least_one("samples_per_group", samples_per_group)
        self._max_groups = at_least_one("max_groups", max_groups)
        if not shrinkage > 0:
            raise ValueError(f"shrinkage must be above 0 samples, got {shrinkage}")
        self._shrinkage = shrinkage
        self._overall = _Recent(at_least_one("samples_overall", samples_overall))
        self._groups: OrderedDict[Hashable, _Recent] = OrderedDict()

    @property
    def num_seen(self) -> int:
        """Lengths learned from so far."""
        return self._overall.num_seen

    @property
    def num_groups(self) -> int:
        """Groups known now."""
        return len(self._groups)

    @property
    def num_samples(self) -> int:
        """Lengths kept now, in all groups together."""
        kept = (self._overall, *self._groups.values())
        return sum(len(recent.sorted) for recent in kept)

    def learn(self, path: Sequence[Hashable], length: int) -> None:
        """A request finished with ``length`` tokens.

        ``path`` names its groups from the widest to the narrowest, without the group of all
        requests; it may be empty. Aborted requests should not be learned from.

        Raises:
            ValueError: ``length`` is negative.
        """
        if length < 0:
            raise ValueError(f"an output of {length} tokens cannot be")
        self._overall.add(length)
        for key in path:
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = _Recent(self._samples_per_group)
                if len(self._groups) > self._max_groups:
                    self._groups.popitem(last=False)
            else:
                self._groups.move_to_end(key)
            group.add(length)

    def predict(self, path: Sequence[Hashable], quantile: float, bounds: Bounds) -> int:
        """Total output that is not exceeded with probability ``quantile``, tokens.

        Given that ``bounds.num_generated`` tokens have not been the end. A hint wins as long
        as the output has not outgrown it. Never above ``max_tokens``, and above
        ``num_generated`` unless ``max_tokens`` is not.

        Raises:
            ValueError: ``quantile`` is outside (0, 1).
        """
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must be inside (0, 1), got {quantile}")
        low = bounds.num_generated + 1
        if bounds.hint is not None and bounds.hint >= low:
            return min(bounds.hint, bounds.max_tokens)
        levels, prior_weight = self._levels(path)
        beyond = self._beyond_everything(bounds.num_generated)
        below = [bisect_left(lengths, low) for lengths, _ in levels]
        mass = prior_weight + sum(
            (len(lengths) - start) * weight
            for (lengths, weight), start in zip(levels, below, strict=True)
        )
        wanted = quantile * mass * (1 - 1e-9)
        high = min(beyond, bounds.max_tokens)
        while low < high:
            middle = (low + high) // 2
            reached = sum(
                (bisect_right(lengths, middle) - start) * weight
                for (lengths, weight), start in zip(levels, below, strict=True)
            )
            if reached >= wanted:
                high = middle
            else:
                low = middle + 1
        return min(low, bounds.max_tokens)

    def _levels(self, path: Sequence[Hashable]) -> tuple[list[tuple[list[int], float]], float]:
        """(sorted lengths, weight of each one) level by level, and the pseudo-sample's weight.

        All weights add up to 1.
        """
        levels: list[tuple[list[int], float]] = []
        left, num_narrower = 1.0, 0
        for key in reversed(path):
            group = self._groups.get(key)
            # As many samples as in the group inside it: the same samples, and no more weight.
            if group is not None and group.num_seen > num_narrower:
                num_narrower = group.num_seen
                share = left / (len(group.sorted) + self._shrinkage)
                levels.append((group.sorted, share))
                left -= share * len(group.sorted)
        overall = self._overall.sorted
        share = left / (len(overall) + 1)
        levels.append((overall, share))
        return levels, share

    def _beyond_everything(self, num_generated: int) -> int:
        """Where the pseudo-sample stands: twice what was seen, of others or of this one."""
        longest = self._overall.sorted[-1] if self._overall.sorted else 0
        return max(self._prior_tokens, 2 * longest, 2 * num_generated)


def at_least_one(name: str, value: int) -> int:
    """``value``. Raises ValueError naming ``name`` if it is below 1."""
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
