# SPDX-License-Identifier: Apache-2.0
"""Waiting requests served by a plan: groups of one level, in an order fixed when it is made.

This is how the published method schedules. A plan is worse informed than the walk of
:class:`GroupQueue` (it sees arrivals late, and one level of sharing), but its groups are what
the paper measured and what an attention kernel for shared prefixes can use.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic

from vllm_batchllm.ordering.group_queue import GroupQueue, R
from vllm_batchllm.ordering.policies import GroupOrder, LoneRequestLoad, PlannedOrder
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.groups import RequestGroup

REPLANNING_SHARE = 4
"""A plan is remade once one in this many of the waiting requests has come or gone since."""


@dataclass(slots=True, eq=False)
class _Group(Generic[R]):
    """Members to be served, in order; those who left stay until they come to the front."""

    members: deque[R]
    num_waiting: int


class PlannedGroupQueue(GroupQueue[R]):
    """Order of admission among requests of equal priority, by a plan.

    Given-back requests first; then the oldest request that waited longer than ``max_wait_s``
    (its group is opened, the interrupted one goes on behind it); then the open group; then the
    next group of the plan. Groups are in the order of the policy's key, a request without hashes
    being a group of its own. Members are in prefix order, that of the leaves of the tree from
    which the groups are read; equal prompts are in order of arrival.

    Arrivals wait for the next plan. It is made when the open group is done, over all who wait,
    provided that one in ``REPLANNING_SHARE`` of them has come or gone since the last. A plan over
    n requests costs O(n log n + sum of depths) and needs n / ``REPLANNING_SHARE`` arrivals or
    departures to pay for it, so a request is planned at most 2 * ``REPLANNING_SHARE`` times on
    average over any stream, single arrivals included. When the plan runs out, all who wait have
    come since, so the proviso holds and nobody is forgotten. Departures alone change no plan.
    """

    def __init__(
        self,
        order: PlannedOrder,
        block_size: int,
        max_wait_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(order, block_size, max_wait_s, clock)
        self._groups_of: Callable[[PrefixForest[R]], list[RequestGroup[R]]] = order.groups
        self._rank_of: dict[R, Any] = {}
        self._plan: OrderedDict[_Group[R], None] = OrderedDict()
        self._group_of: dict[R, _Group[R]] = {}
        self._open: _Group[R] | None = None
        self._num_changes = 0

    def add(self, request: R, rank: Any) -> None:
        """File a new request. ``rank`` orders arrivals; smaller is earlier."""
        super().add(request, rank)
        self._rank_of[request] = rank
        self._num_changes += 1

    def peek(self) -> R:
        """The next request; may make a plan. Raises IndexError when nobody waits."""
        returned = self._returned()
        if returned is not None:
            return returned[1]
        if not self._rank_of:
            raise IndexError("peek from an empty queue")
        overdue = self._overdue()
        if overdue is not None:
            self._open_group_of(overdue)
            return overdue
        if self._open is None:
            if self._is_plan_outdated():
                self._make_plan()
            self._open = next(iter(self._plan))
        members = self._open.members
        while self._group_of.get(members[0]) is not self._open:
            members.popleft()
        return members[0]

    def remove(self, request: R, *, admitted: bool = False) -> None:
        """Take ``request`` out. Raises KeyError if it does not wait here."""
        was_returned = request in self._requeued or request in self._skipped
        node = self._forest.node_of(request) if request in self._forest else None
        super().remove(request, admitted=admitted)
        if admitted and node is not None:
            self._forest.refresh(node)  # no walk will: the plan leads, not the forest
        if was_returned:
            return
        del self._rank_of[request]
        self._num_changes += 1
        group = self._group_of.pop(request, None)
        if group is None:
            return
        group.num_waiting -= 1
        if group.num_waiting == 0:
            del self._plan[group]
            if group is self._open:
                self._open = None

    def __iter__(self) -> Iterator[R]:
        """Requests in the order of admission as it stands now; read-only.

        Waiting-time limits are left out. Arrivals that the plan does not hold come last; where
        the next peek would make a new plan, it is that plan's order.
        """
        yield from self._in_front()
        if self._open is None and self._is_plan_outdated():
            yield from chain.from_iterable(self._ordered_groups())
            return
        for group in self._plan:
            yield from (r for r in group.members if self._group_of.get(r) is group)
        yield from (r for r in self._rank_of if r not in self._group_of)

    def is_in_group(self) -> bool:
        """Whether the head belongs to a group of which somebody has been served already."""
        return self._open is not None and self._returned() is None

    def _open_group_of(self, overdue: R) -> None:
        if overdue not in self._group_of:
            # Arrivals are younger than all the plan was made of, so the plan has run out.
            self._make_plan()
        self._open = self._group_of[overdue]
        self._plan.move_to_end(self._open, last=False)

    def _is_plan_outdated(self) -> bool:
        num_waiting = len(self._rank_of)
        has_arrivals = len(self._group_of) < num_waiting
        return has_arrivals and self._num_changes * REPLANNING_SHARE >= num_waiting

    def _make_plan(self) -> None:
        self._plan.clear()
        self._group_of.clear()
        self._num_changes = 0
        for members in self._ordered_groups():
            group = _Group(deque(members), len(members))
            self._plan[group] = None
            self._group_of.update(dict.fromkeys(members, group))

    def _ordered_groups(self) -> list[Sequence[R]]:
        groups = self._groups_of(self._forest)
        groups += [RequestGroup(0, (request,)) for request in self._unhashed]
        return [group.members for group in sorted(groups, key=self._key)]

    def _key(self, group: RequestGroup[R]) -> Any:
        """The policy's key of a group, its prefix counted once, computed or not."""
        prefix_tokens = group.num_prefix_blocks * self._forest.block_size
        num_shared_tokens = (len(group.members) - 1) * prefix_tokens
        load = LoneRequestLoad(
            num_waiting=len(group.members),
            num_output_tokens=sum(self._load(r, 0).num_output_tokens for r in group.members),
            num_prompt_tokens=sum(r.num_tokens for r in group.members) - num_shared_tokens,
            rank=min(self._rank_of[r] for r in group.members),
        )
        return self._order.key(load)

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        super().check_integrity()
        for request in self._rank_of:
            assert request in self._forest or request in self._unhashed, "a stale rank"
        assert len(self._rank_of) == len(self._forest) + len(self._unhashed), "a rank is missing"
        assert self._group_of.keys() <= self._rank_of.keys(), "the plan holds one who left"
        assert set(self._group_of.values()) == set(self._plan), "groups and plan disagree"
        for group in self._plan:
            living = [r for r in group.members if self._group_of.get(r) is group]
            assert 0 < len(living) == group.num_waiting, "a group lost count"
        assert self._open is None or next(iter(self._plan)) is self._open, "the open group moved"


def queue_class_for(order: GroupOrder) -> type[GroupQueue[Any]]:
    """The class of queue that serves requests as ``order`` wants it."""
    return PlannedGroupQueue if isinstance(order, PlannedOrder) else GroupQueue
