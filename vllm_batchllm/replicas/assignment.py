# SPDX-License-Identifier: Apache-2.0
"""Who takes which items of a batch next: intervals of its depth-first order, and stealing by whoever runs dry.

Every replica begins with an interval of its own (`cut`), and takes it from front to back, so neighbours meet in one KV cache. Who
has nothing left takes a part of what another has not been told of, such that both end at the same time, cut where it is cheap.
What a replica has been told of cannot be taken from it. So whoever says how much that is (`set_backlog`) is told of no more than
it does until all others end, or a slow one that runs many requests at once would hold them to the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vllm_batchllm.replicas.cut import SLACK, Costs, Floats, Ints, cheapest_cuts
from vllm_batchllm.replicas.outlook import Outlook, Replica

TOLERANCE = 0.05
"""A theft may end so much later than the best one (share of what the victim's rest takes) if its cut is cheaper."""
WORTHWHILE = 0.01
"""Share of the time of the whole batch that a theft must bring, beside `PRICES` times what computing its prefix again takes: parts
that were made a little unequal, because that was cheaper to cut, are not made equal again at a high price."""
PRICES = 2.0


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
        certainty: how far costs can be trusted: where they are guesses, a replica with a backlog is told of no more than this share
            of what it will have done when all others end, because what was too much cannot be taken back. 1 where they are known.
        num_stolen: thefts so far. cut_work: prefix work that cuts have made, those of thefts included; what came
            back from replicas that died is not in it.
    """

    def __init__(self, costs: Costs, replicas: Sequence[Replica], *, steals: bool = True) -> None:
        self._costs, self._steals = costs, steals
        self._before = np.concatenate(([0.0], np.cumsum(costs.work)))
        self._absent: set[Replica] = set()
        self._outlook = Outlook(replicas)
        self._left_work = float(self._before[-1])
        self._dearest = float(costs.shared.max(initial=0.0))
        self._returned: list[int] = []
        self._rests: list[_Rest] = []
        self.num_left = len(costs)
        self.certainty = 1.0
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

    def take(self, replica: Replica, num_items: int, now_s: float = 0.0) -> list[int]:
        """At most ``num_items`` items that ``replica`` computes next; empty if nothing is left that it had better do.

        What came back from others goes first. O(num_items + replicas), and for a theft O(items of the victim) more.

        now_s: on the clock of `set_backlog`.
        """
        self._outlook.join(replica, now_s)
        if num_items < 1 or not self.num_left:
            return []
        if self._returned:
            taken, self._returned = self._returned[:num_items], self._returned[num_items:]
        else:
            rest = self._next(replica)
            if rest is None:
                return []
            end = min(rest.end, rest.begin + num_items, self._enough(replica, rest))
            taken = list(range(rest.begin, end))
            self._shrink(rest, end)
        self._told(replica, taken)
        return taken

    def put_back(self, items: Iterable[int]) -> None:
        """These were taken and have not been computed: whoever is free takes them next."""
        came = sorted(items)
        self._returned = sorted([*self._returned, *came])
        self.num_left += len(came)
        self._left_work += self._work_of(came)

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
        self._outlook.leave(replica)

    def set_speed(self, replica: Replica, speed: float) -> None:
        """So much work a second does the replica; those of whom nobody has said so count as the mean of the others."""
        self._outlook.set_speed(replica, speed)

    def set_backlog(self, replica: Replica, work: float, at_s: float = 0.0) -> None:
        """So much of what the replica was told of was not done at that time; what `take` adds is counted, and what the replica does
        at its speed until somebody asks."""
        self._outlook.set_backlog(replica, work, at_s)

    def reweigh(self, work: Floats) -> None:
        """Better estimates of all items' work, from here on. Raises ValueError if they are not as many."""
        self._costs = Costs(work, self._costs.shared)
        self._before = np.concatenate(([0.0], np.cumsum(work)))
        self._left_work = sum(map(self._work, self._rests)) + self._work_of(self._returned)

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

    def _next(self, replica: Replica) -> _Rest | None:
        """Where the replica goes on; None if it has enough, or nothing is left for it."""
        rest = self._own(replica)
        if rest is not None and self._nobody_comes(rest):
            return rest
        return None if self._room(replica) < 0 else rest or self._found(replica)

    def _enough(self, replica: Replica, rest: _Rest) -> int:
        """Behind which item of a rest the replica is busy until all others end; at least the first is let in."""
        if self._nobody_comes(rest):
            return rest.end
        most = self._before[rest.begin] + self._room(replica)
        return max(int(np.searchsorted(self._before, most)), rest.begin + 1)

    def _nobody_comes(self, rest: _Rest) -> bool:
        """Whether it is too little for anybody else: its owner ends with it about as early as the batch can end."""
        speed = self._outlook.speed(rest.owner)
        late = (
            self._ends_alone_s(rest) - self._batch_end_s(rest.owner) - self._worthwhile_s()
        ) * speed
        if late <= 0 or late > PRICES * self._dearest:
            return late <= 0
        return late <= PRICES * float(self._costs.shared[rest.begin : rest.end].min())

    def _room(self, replica: Replica) -> float:
        """Work of which the replica may be told until it is busy as long as all others, if they do all that is left."""
        known = self._outlook
        if not self._steals or not known.has_backlog(replica):
            return float("inf")
        most_s = self.certainty * self._all_end_s() + self._worthwhile_s()
        return most_s * known.speed(replica) - known.backlog(replica)

    def _found(self, replica: Replica) -> _Rest | None:
        """For one without an interval: one that nobody has, or a part of another's."""
        orphan = next((rest for rest in self._rests if rest.owner is None), None)
        if orphan is not None:
            orphan.owner = replica
            return orphan
        if not self._steals or not self._rests:
            return None
        victim = max(self._rests, key=self._ends_alone_s)
        place = self._best_cut(victim, replica)
        if place is None:
            return None
        stolen = _Rest(place, victim.end, replica)
        self._rests.append(stolen)
        self.num_stolen += 1
        self.cut_work += float(self._costs.shared[place])
        self._shrink_to(victim, place)
        return stolen

    def _best_cut(self, rest: _Rest, thief: Replica) -> int | None:
        """Where a theft begins: the cheapest place of those at which both end about as early as possible.

        None if what is gained is too little for what is computed again. Before the batch can end, nothing is gained: one of many
        that end late is not helped at a price. From one that has not started all may be taken.
        """
        victim_speed, thief_speed = self._outlook.speed(rest.owner), self._outlook.speed(thief)
        places = np.arange(rest.begin, rest.end)
        price = self._costs.shared[places]
        stays = self._before[places] - self._before[rest.begin] + self._outlook.backlog(rest.owner)
        goes = self._before[rest.end] - self._before[places] + price + self._outlook.backlog(thief)
        ends: Floats = np.maximum(stays / victim_speed, goes / thief_speed)
        end_s, is_dear = self._batch_end_s(rest.owner), price > 0
        best_end = np.where(is_dear, end_s, self._all_end_s())
        gain = self._ends_alone_s(rest) - np.maximum(ends, best_end)
        least_gain = np.where(is_dear, self._dear_s(end_s), self._worthwhile_s())
        pays = gain >= least_gain + PRICES * price / thief_speed
        if rest.owner in self._absent:
            pays[:] = True
        if not pays.any():
            return None
        near = ends[pays].min() + TOLERANCE * self._work(rest) / victim_speed
        good: Ints = np.flatnonzero(pays & (ends <= near))
        cheapest = good[price[good] == price[good].min()]
        return int(places[cheapest[np.argmin(ends[cheapest])]])

    def _ends_alone_s(self, rest: _Rest) -> float:
        """When its owner is ready if nobody helps, from now."""
        return (self._work(rest) + self._outlook.backlog(rest.owner)) / self._outlook.speed(
            rest.owner
        )

    def _all_end_s(self) -> float:
        """When all that is left is done if everybody is busy until then, from now."""
        return (self._outlook.all_backlogs() + self._left_work) / self._outlook.all_speeds()

    def _batch_end_s(self, replica: Replica | None) -> float:
        """When the batch can end at best, from now, whatever this replica gives away: others keep what they were told of."""
        return max(self._all_end_s(), self._outlook.latest_s(replica))

    def _dear_s(self, end_s: float) -> float:
        """What a theft that costs something must bring: no less than the cut let parts differ."""
        return max(self._worthwhile_s(), SLACK * end_s)

    def _worthwhile_s(self) -> float:
        return WORTHWHILE * float(self._before[-1]) / self._outlook.all_speeds()

    def _told(self, replica: Replica, items: list[int]) -> None:
        work = self._work_of(items)
        self.num_left -= len(items)
        self._left_work -= work
        self._outlook.add(replica, work)

    def _work_of(self, items: list[int]) -> float:
        return float(self._costs.work[items].sum()) if items else 0.0

    def _work(self, rest: _Rest) -> float:
        return float(self._before[rest.end] - self._before[rest.begin])

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
