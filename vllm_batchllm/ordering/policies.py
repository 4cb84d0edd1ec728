# SPDX-License-Identifier: Apache-2.0
"""Ordering policies: which prefix group is opened next.

A policy sees a group as a few sums (:class:`GroupLoad`) and returns a sortable key; the group
with the smallest key is opened first, at every level of the tree. Whatever the policy, the
walk stays depth first inside a group, so the order never costs reuse. A policy that plans
(:class:`PlannedOrder`) also says what a group is: one level of sharing instead of the whole tree.
Every key ends in the rank of arrival: ties keep the order in which requests came.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.prefix.groups import RequestGroup, exact_groups, greedy_groups

T = TypeVar("T", bound=Hashable)

PATIENCE = 200
"""``short-first`` lets later arrivals go before a request up to so many times its own tokens."""


class GroupLoad(Protocol):
    """What a policy may know of a group (a forest node, or a lone request).

    num_waiting: requests that wait in it.
    num_output_tokens: output expected of them, tokens.
    num_prompt_tokens: prompt tokens still to compute for them, shared runs counted once.
    rank: of the earliest arrival; smaller is earlier.
    """

    @property
    def num_waiting(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def rank(self) -> Any: ...


class LoneRequestLoad(NamedTuple):
    """The load of a request that shares nothing."""

    num_waiting: int
    num_output_tokens: int
    num_prompt_tokens: int
    rank: Any


class GroupOrder(Protocol):
    """An ordering policy.

    name: as users write it. dynamic: whether keys change while a group waits.
    """

    name: str
    dynamic: bool

    def key(self, group: GroupLoad) -> Any:
        """Sortable key of ``group``; the smallest is opened first."""


@runtime_checkable
class PlannedOrder(GroupOrder, Protocol):
    """An ordering policy that also says which requests form a group."""

    def groups(self, forest: PrefixForest[T]) -> list[RequestGroup[T]]:
        """Partition the requests in `forest`."""


@runtime_checkable
class RankingOrder(GroupOrder, Protocol):
    """An ordering policy that also says how requests rank on arrival."""

    def rank(self, arrival: Any, num_tokens: int, num_tokens_before: int) -> Any:
        """What takes the place of ``arrival``, the plain rank of a request; sortable.

        num_tokens: of the request. num_tokens_before: of all that arrived before it.
        """


class DepthFirst:
    """``dfs``: groups in order of their earliest arrival. With nothing shared this is FCFS."""

    name = "dfs"
    dynamic = False

    def key(self, group: GroupLoad) -> Any:
        return group.rank


class ShortFirst(DepthFirst):
    """``short-first``: groups in order of their shortest request, by prompt tokens.

    For batches of which only a part is in sight. A request that leaves makes room for one that
    may share something with those still there. Long ones have most to share, and as many of
    them as fit stay in sight until what belongs to them has come. A request of n tokens ranks as
    if it had come ``PATIENCE * n`` tokens of arrivals later than it did. So nobody starves: those
    who arrive later and go first bring fewer than that together, the rest of their groups aside.
    """

    name = "short-first"

    def rank(self, arrival: Any, num_tokens: int, num_tokens_before: int) -> Any:
        return (PATIENCE * num_tokens + num_tokens_before, arrival)


class DecodeRatio:
    """``decode-ratio``: most expected output per prompt token still to compute, first.

    Expected when a request comes: its hint, its ``max_tokens`` where nothing else can end it, or
    what the lengths seen so far say.

    Long outputs start early, so that their decodes ride on the prefills of later groups.
    Members are counted: the published R_group = 1 / (L_prefix + sum of L_suffix) (BatchLLM,
    section on group ordering) takes one output per group; here the numerator is the output of
    all members.
    """

    name = "decode-ratio"
    dynamic = True

    def key(self, group: GroupLoad) -> Any:
        return (-group.num_output_tokens / max(group.num_prompt_tokens, 1), group.rank)


class Paper:
    """``paper``: the published groups and order (BatchLLM, arXiv 2412.03594).

    R_group = 1 / (L_prefix + sum of L_suffix), larger first, so the group with the fewest prompt
    tokens comes first, whatever the number of its members.
    """

    name = "paper"
    dynamic = True

    def key(self, group: GroupLoad) -> Any:
        return (group.num_prompt_tokens, group.rank)

    def groups(self, forest: PrefixForest[T]) -> list[RequestGroup[T]]:
        return greedy_groups(forest)


class ExactGroups(DecodeRatio):
    """``exact-groups``: the best groups of one level, most expected output per token first."""

    name = "exact-groups"

    def groups(self, forest: PrefixForest[T]) -> list[RequestGroup[T]]:
        return exact_groups(forest)


ORDERS: dict[str, type[GroupOrder]] = {
    policy.name: policy for policy in (DepthFirst, DecodeRatio, ShortFirst, Paper, ExactGroups)
}


def make_order(name: str) -> GroupOrder:
    """The policy called ``name``. Raises ValueError that lists the known ones."""
    try:
        return ORDERS[name]()
    except KeyError:
        raise ValueError(f"unknown order {name!r}; known: {', '.join(ORDERS)}") from None
