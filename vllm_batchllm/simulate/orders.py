# SPDX-License-Identifier: Apache-2.0
"""Orders that are tried out by arranging the input: our queue opens groups as they arrive.

They know the real output lengths, also where the engine does not, so they say what such an order
can bring at most. A group is what shares more with each other than all requests do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_batchllm.workloads.batch import Batch, common_prefix_len

MIN_SHARED_TOKENS = 16
"""Tokens that members of a group share beyond what all requests share: one block on a GPU."""
KEPT_SHARING = 0.99
"""``mix-split`` takes requests out of their groups as long as this share of the saving stays."""
OUTLIER = 4.0
"""How many times denser or thinner than its group a request is that may be taken out."""


@dataclass(frozen=True, slots=True)
class Group:
    """Requests by place, in prefix order. num_prefill: tokens to compute. num_output: to produce."""

    places: tuple[int, ...]
    num_prefill: int
    num_output: int

    @property
    def density(self) -> float:
        """Tokens to compute for each one to produce: high is bound by compute, low by memory."""
        return self.num_prefill / self.num_output


def groups_of(batch: Batch) -> list[Group]:
    """The groups of a batch in prefix order."""
    order = sorted(range(batch.num_requests), key=lambda place: batch.prompts[place])
    shared = [
        common_prefix_len(batch.prompts[first], batch.prompts[second])
        for first, second in pairwise(order)
    ]
    common = min(shared, default=0)
    groups, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or shared[end - 1] < common + MIN_SHARED_TOKENS:
            groups.append(_group(batch, order[start:end], shared[start : end - 1]))
            start = end
    return groups


def _group(batch: Batch, places: Sequence[int], shared: Sequence[int]) -> Group:
    num_tokens = sum(len(batch.prompts[place]) for place in places)
    num_output = sum(batch.output_lens[place] for place in places)
    return Group(tuple(places), num_tokens - sum(shared), num_output)


def longest_first(batch: Batch) -> list[int]:
    """Longest processing time first: groups, and requests in them, by their longest output."""
    lengths = batch.output_lens

    def longest(group: Group) -> int:
        return -max(lengths[place] for place in group.places)

    return [
        place
        for group in sorted(groups_of(batch), key=longest)
        for place in sorted(group.places, key=lambda place: -lengths[place])
    ]


def mix(batch: Batch) -> list[int]:
    """Groups from both ends of the scale from compute to memory, in the proportion of the batch.

    After BlendServe (ASPLOS 2026): what runs together then needs both in even parts.
    """
    return _from_both_ends(groups_of(batch))


def mix_split(batch: Batch) -> list[int]:
    """``mix``, with outliers taken out of their groups while 99 % of the saving stays."""
    groups = groups_of(batch)
    saved = batch.prompt_tokens - sum(group.num_prefill for group in groups)
    budget = (1 - KEPT_SHARING) * saved
    outliers = sorted(
        (
            (max(ratio, 1 / ratio), place)
            for group in groups
            for place, ratio in _relative_densities(batch, group)
        ),
        reverse=True,
    )
    taken: set[int] = set()
    for deviation, place in outliers:
        budget -= len(batch.prompts[place])
        if deviation < OUTLIER or budget < 0:
            break
        taken.add(place)
    kept = [
        Group(left, group.num_prefill, sum(batch.output_lens[place] for place in left))
        for group in groups
        if (left := tuple(place for place in group.places if place not in taken))
    ]
    alone = [
        Group((place,), len(batch.prompts[place]), batch.output_lens[place]) for place in taken
    ]
    return _from_both_ends(kept + alone)


def _relative_densities(batch: Batch, group: Group) -> list[tuple[int, float]]:
    """Each member's output against the mean of its group, for groups of several."""
    mean = group.num_output / len(group.places)
    if len(group.places) == 1:
        return []
    return [(place, batch.output_lens[place] / mean) for place in group.places]


def _from_both_ends(groups: Sequence[Group]) -> list[int]:
    ordered = sorted(groups, key=lambda group: group.density)
    prefill = sum(group.num_prefill for group in ordered)
    target = prefill / sum(group.num_output for group in ordered)
    low, high = 0, len(ordered) - 1
    done_prefill = done_output = 0
    places: list[int] = []
    while low <= high:
        if done_prefill > target * done_output:
            group, low = ordered[low], low + 1
        else:
            group, high = ordered[high], high - 1
        done_prefill += group.num_prefill
        done_output += group.num_output
        places += group.places
    return places


ARRANGED: dict[str, Callable[[Batch], list[int]]] = {
    "longest-first": longest_first,
    "mix": mix,
    "mix-split": mix_split,
}
