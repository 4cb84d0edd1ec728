# SPDX-License-Identifier: Apache-2.0
"""Who takes which items of a batch next: intervals of its depth-first order, and stealing by whoever runs dry.

Every replica begins with an interval of its own (`cut`), and takes it from front to back, so neighbours meet in one KV cache. Who
has nothing left takes a part of what another has not been told of, such that both end at the same time, cut where it is cheap.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vllm_batchllm.replicas.cut import Costs, Floats, Ints, cheapest_cuts

Replica = Hashable
TOLERANCE = 0.05
"""A theft may end so much later than the best one (share of the victim's time left) if its cut is cheaper."""


@dataclass(slots=True)
class _Rest:
    """Items [begin, end) that nobody was told of. owner: who goes on there; None if that replica has left."""

    begin: int
    end: int
    owner: Replica | None


class Assignment:
    """What is left of a batch, and for whom. Items are places in its depth-first order.

    Args:
        costs: of the items, in that order.
        replicas: that begin with an interval; others may join later.

    Attributes:
        num_stolen: thefts so far. cut_work: prefix work that cuts have made, those of thefts included; what came
            back from replicas that died is not in it.
    """

    def __init__(self, costs: Costs, replicas: Sequence[Replica], *, steals: bool = True) -> None:
        self._costs, self._steals = costs, steals
        self._before = np.concatenate(([0.0], np.cumsum(costs.work)))
        self._speeds: dict[Replica, float] = {}
        self._absent: set[Replica] = set()
        self._returned: list[int] = []
        self._rests: list[_Rest] = []
        self.num_left = len(costs)
        self.num_stolen, self.cut_work = 0, 0.0
        if replicas:
            starts = cheapest_cuts(costs, len(replicas)).tolist()
            edges = pairwise([*starts, len(costs)])
            self._rests = [
                _Rest(begin, end, owner)
                for (begin, end), owner in zip(edges, replicas, strict=False)
            ]
            self.cut_work = float(costs.shared[starts[1:]].sum())
        elif len(costs):
            self._rests = [_Rest(0, len(costs), None)]

    def take(self, replica: Replica, num_items: int) -> list[int]:
        """At most ``num_items`` items that ``replica`` computes next; empty if nothing is left that it had better do.

        What came back from others goes first. O(num_items), and for a theft O(replicas + items of the victim).
        """
        if num_items < 1:
            return []
        if self._returned:
            taken, self._returned = self._returned[:num_items], self._returned[num_items:]
        else:
            rest = self._own(replica) or self._found(replica)
            if rest is None:
                return []
            end = min(rest.end, rest.begin + num_items)
            taken = list(range(rest.begin, end))
            self._shrink(rest, end)
        self.num_left -= len(taken)
        return taken

    def put_back(self, items: Iterable[int]) -> None:
        """These were taken and have not been computed: whoever is free takes them next."""
        came = sorted(items)
        self._returned = sorted([*self._returned, *came])
        self.num_left += len(came)

    def set_absent(self, replica: Replica) -> None:
        """The replica has not started yet; what is meant for it may be taken by others to the last item."""
        self._absent.add(replica)

    def set_present(self, replica: Replica) -> None:
        """The replica has started."""
        self._absent.discard(replica)

    def leave(self, replica: Replica) -> None:
        """The replica is no more; what it was not told of is anybody's."""
        for rest in self._rests:
            if rest.owner == replica:
                rest.owner = None
        self._speeds.pop(replica, None)

    def set_speed(self, replica: Replica, speed: float) -> None:
        """So much work a second does the replica; those of whom nobody has said so count as the mean of the others."""
        if speed > 0:
            self._speeds[replica] = speed

    def reweigh(self, work: Floats) -> None:
        """Better estimates of all items' work, from here on. Raises ValueError if they are not as many."""
        self._costs = Costs(work, self._costs.shared)
        self._before = np.concatenate(([0.0], np.cumsum(work)))

    def rest_of(self, replica: Replica) -> tuple[int, int]:
        """The items [begin, end) that are next for a replica; (0, 0) for one that has none."""
        rest = self._own(replica)
        return (0, 0) if rest is None else (rest.begin, rest.end)

    def check_integrity(self) -> None:
        """Raise AssertionError unless rests are disjoint, not empty, one for each owner, and add up."""
        ordered = sorted(self._rests, key=lambda rest: rest.begin)
        assert all(rest.begin < rest.end for rest in ordered)
        assert all(one.end <= other.begin for one, other in pairwise(ordered))
        owners = [rest.owner for rest in ordered if rest.owner is not None]
        assert len(owners) == len(set(owners))
        in_rests = sum(rest.end - rest.begin for rest in ordered)
        assert self.num_left == in_rests + len(self._returned)
        assert len(set(self._returned)) == len(self._returned)

    def _own(self, replica: Replica) -> _Rest | None:
        return next((rest for rest in self._rests if rest.owner == replica), None)

    def _found(self, replica: Replica) -> _Rest | None:
        """For one without an interval: one that nobody has, or a part of another's."""
        orphan = next((rest for rest in self._rests if rest.owner is None), None)
        if orphan is not None:
            orphan.owner = replica
            return orphan
        if not self._steals or not self._rests:
            return None
        victim = max(self._rests, key=lambda rest: self._work(rest) / self._speed(rest.owner))
        place = self._best_cut(victim, self._speed(victim.owner), self._speed(replica))
        if place is None:
            return None
        stolen = _Rest(place, victim.end, replica)
        self._rests.append(stolen)
        self.num_stolen += 1
        self.cut_work += float(self._costs.shared[place])
        self._shrink_to(victim, place)
        return stolen

    def _best_cut(self, rest: _Rest, victim_speed: float, thief_speed: float) -> int | None:
        """Where a theft begins: the cheapest place of those at which both end about as early as possible.

        None if the victim is there and ready as early alone.
        """
        places = np.arange(rest.begin, rest.end)
        price = self._costs.shared[places]
        left = (self._before[places] - self._before[rest.begin]) / victim_speed
        right = (self._before[rest.end] - self._before[places] + price) / thief_speed
        ends: Floats = np.maximum(left, right)
        alone = self._work(rest) / victim_speed
        latest = np.inf if rest.owner in self._absent else alone
        if ends.min() >= latest:
            return None
        good: Ints = np.flatnonzero(ends <= min(ends.min() + TOLERANCE * alone, latest))
        cheapest = good[price[good] == price[good].min()]
        return int(places[cheapest[np.argmin(ends[cheapest])]])

    def _work(self, rest: _Rest) -> float:
        return float(self._before[rest.end] - self._before[rest.begin])

    def _speed(self, replica: Replica | None) -> float:
        known = self._speeds
        if replica in known:
            return known[replica]
        return sum(known.values()) / len(known) if known else 1.0

    def _shrink(self, rest: _Rest, begin: int) -> None:
        """Items before ``begin`` were taken from the front."""
        rest.begin = begin
        if rest.begin >= rest.end:
            self._rests.remove(rest)

    def _shrink_to(self, rest: _Rest, end: int) -> None:
        rest.end = end
        if rest.begin >= rest.end:
            self._rests.remove(rest)


def waiting_limit(num_left: int, num_replicas: int, least: int, most: int) -> int:
    """How many items a replica may be told of beyond those that it computes.

    A fourth of its fair part of what nobody was told of, from ``least`` to ``most``: many while there is much, so that its engine
    sees groups whole; few at the end, so that there is something to take from whoever is late.
    """
    return max(least, min(most, num_left // (4 * max(num_replicas, 1))))
