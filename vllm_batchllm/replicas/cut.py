# SPDX-License-Identifier: Apache-2.0
"""Where a batch in depth-first order is cut into near equal parts, so that as little as possible is computed twice.

In that order a part is an interval, and what a cut costs is the prefix that its two neighbours share: the second part computes it
again, whatever the other cuts are. So the cheapest cuts are found exactly, by dynamic programming over positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SLACK = 0.02
"""How much larger than needed the largest part may be, if that makes cuts cheaper."""
_HALVINGS = 60
_TIE = 1e-3
"""Of a unit of work: what all cuts together may cost more than the cheapest, to be more even."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What items of a batch cost, in its depth-first order; both (num_items,), in the same unit, say tokens.

    work: of an item behind the one before it. shared: of the prefix that it shares with that one; 0 for the first.
    """

    work: Floats
    shared: Floats

    def __post_init__(self) -> None:
        if self.work.shape != self.shared.shape or self.work.ndim != 1:
            raise ValueError(
                f"work and shared must be as long as each other, got {self.work.shape} and {self.shared.shape}"
            )

    def __len__(self) -> int:
        return len(self.work)


def cheapest_cuts(costs: Costs, num_parts: int, slack: float = SLACK) -> Ints:
    """Where the parts start: (n,), ascending, the first is 0, n at most ``num_parts``; empty without items.

    Of all cuts into at most so many intervals whose largest has, with what it computes again, no more work than
    ``1 + slack`` times the least that is possible, these have the least prefix work done twice.

    O(num_items + slack * num_items * num_parts * log): a million items in 256 parts take about a second.

    Raises:
        ValueError: no parts, or slack below 0.
    """
    if num_parts < 1 or slack < 0:
        raise ValueError(
            f"num_parts must be 1 or more, slack 0 or more, not {num_parts} and {slack}"
        )
    if not len(costs):
        return np.zeros(0, dtype=np.int64)
    places = _Places.of(costs)
    bound = (1 + slack) * least_bound(costs, num_parts)
    chosen = _Search(places, bound * (1 + 1e-12), num_parts).run()
    return places.positions[chosen]


def least_bound(costs: Costs, num_parts: int) -> float:
    """The work of the largest part where it is as small as it can be, by halving; at most a billionth too large."""
    places = _Places.of(costs)
    high = float(places.before[-1])
    low = high / num_parts
    if places.fits(low, num_parts):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if places.fits(middle, num_parts):
            high = middle
        else:
            low = middle
        if high - low <= 1e-9 * high:
            break
    return high


def parts_work(costs: Costs, starts: Ints) -> Floats:
    """Work of each part, what it computes again included."""
    ends = np.append(starts[1:], len(costs))
    before = np.concatenate(([0.0], np.cumsum(costs.work)))
    work: Floats = before[ends] - before[starts] + np.where(starts > 0, costs.shared[starts], 0.0)
    return work


@dataclass(frozen=True, slots=True)
class _Places:
    """Where a part may start, and behind all of them the end.

    A start is of no use if one before it begins a part with less to do in all, although that has more items: it costs more to
    cut, and makes the part before longer, too. Without those, a part that starts later has less to do.

    positions: of items; the last is their number. price: of a cut there. before: work of all items before it. begin: the same
    less the price, so that a part from a to b has ``before[b] - begin[a]`` to do; ascending.
    """

    positions: Ints
    price: Floats
    before: Floats
    begin: Floats

    @classmethod
    def of(cls, costs: Costs) -> _Places:
        total = np.concatenate(([0.0], np.cumsum(costs.work)))
        price = costs.shared.astype(np.float64)
        price[0] = 0.0
        begin = total[:-1] - price
        useful = np.flatnonzero(begin >= np.maximum.accumulate(begin))
        return cls(
            np.append(useful, len(costs)),
            np.append(price[useful], 0.0),
            np.append(total[useful], total[-1]),
            np.append(begin[useful], total[-1]),
        )

    def furthest(self, start: int, bound: float) -> int:
        """The last place at which a part that begins at ``start`` can end."""
        reach = self.begin[start] + bound
        return int(np.searchsorted(self.before, reach, side="right")) - 1

    def earliest(self, end: int, bound: float) -> int:
        """The first place from which on a part can begin that ends at ``end``."""
        return int(np.searchsorted(self.begin, self.before[end] - bound, side="left"))

    def fits(self, bound: float, num_parts: int) -> bool:
        """Whether so many parts are enough."""
        place, end = 0, len(self.positions) - 1
        for _ in range(num_parts):
            further = self.furthest(place, bound)
            if further >= end:
                return True
            if further <= place:
                return False
            place = further
        return False


class _Search:
    """Dynamic programming, a layer for each cut: the least price of all cuts so far if the next part begins here.

    Only places are looked at that so many parts can reach and from which the rest can be done, which are few.
    """

    def __init__(self, places: _Places, bound: float, num_parts: int) -> None:
        self._places, self._bound, self._num_parts = places, bound, num_parts
        self._end = len(places.positions) - 1
        self._least = np.searchsorted(places.begin, places.before - bound, side="left")
        """(num_places,): the first place from which a part can reach this one."""

    def run(self) -> list[int]:
        """Places at which parts start."""
        firsts = self._first_useful()
        begin, prices = 0, np.zeros(1)
        chosen_from: list[tuple[int, Ints]] = []
        finished: list[tuple[float, int]] = []
        for number in range(1, self._num_parts + 1):
            low = max(firsts[number], begin + 1)
            high = self._places.furthest(begin + len(prices) - 1, self._bound)
            ends = np.arange(low, max(high, low) + 1)
            best = _first_minimum(prices, self._least[ends] - begin, ends - begin)
            chosen_from.append((low, best + begin))
            prices = prices[best] + self._places.price[ends] + self._unevenness(ends, number)
            begin = low
            if ends[-1] >= self._end:
                finished.append((float(prices[-1]), number))
                ends, prices = ends[:-1], prices[:-1]
            if not len(prices):
                break
        _, number = min(finished)
        return self._way(chosen_from, number)

    def _unevenness(self, ends: Ints, number: int) -> Floats:
        """Decides between cuts of the same price: how far each is from even parts, at most a thousandth in all."""
        before = self._places.before
        even = before[-1] * number / self._num_parts
        scale = max(float(before[-1]), 1e-9) * self._num_parts
        uneven: Floats = _TIE * np.abs(before[ends] - even) / scale
        return uneven

    def _first_useful(self) -> list[int]:
        """For each number of parts that are done, the first place from which the others can do the rest."""
        place, firsts = self._end, [self._end]
        for _ in range(self._num_parts):
            place = self._places.earliest(place, self._bound)
            firsts.append(place)
        return firsts[::-1]

    def _way(self, chosen_from: list[tuple[int, Ints]], number: int) -> list[int]:
        place, way = self._end, []
        for low, best in reversed(chosen_from[:number]):
            place = int(best[place - low])
            way.append(place)
        return way[::-1]


def _first_minimum(values: Floats, lows: Ints, highs: Ints) -> Ints:
    """For each window [low, high) of ``values``, cut to what there is, where its least value stands. Sparse tables."""
    lows = np.clip(lows, 0, len(values) - 1)
    highs = np.clip(highs, lows + 1, len(values))
    levels = np.log2(highs - lows).astype(np.int64)
    found = np.empty(len(lows), dtype=np.int64)
    table = np.arange(len(values))
    for level in range(int(levels.max()) + 1):
        if level:
            half = 1 << (level - 1)
            left, right = table[:-half], table[half:]
            table = np.where(values[left] <= values[right], left, right)
        at = np.flatnonzero(levels == level)
        left, right = table[lows[at]], table[highs[at] - (1 << level)]
        found[at] = np.where(values[left] <= values[right], left, right)
    return found
