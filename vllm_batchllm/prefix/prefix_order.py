# SPDX-License-Identifier: Apache-2.0
"""Depth-first order over chained hashes of a whole batch, in arrays: no object for a line or a node.

The same order as a walk over a forest of them in which siblings come by their first line, and a line that is a prefix of others
comes before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class HashTable:
    """Chained hashes of many lines, one behind the other.

    hashes: of all lines. starts: (num_lines + 1,), where each line's begin, and where the last one's end.
    """

    hashes: Hashes
    starts: Ints

    @property
    def depths(self) -> Ints:
        """(num_lines,): how many hashes each line has."""
        return np.diff(self.starts)


def prefix_order(table: HashTable, lines: Ints) -> Ints:
    """``lines`` in depth-first order of their shared prefixes.

    Args:
        lines: indices into the table, ascending.

    Groups are split level by level, and what a whole group shares is passed over by doubling, so the cost is
    O(lines * branchings * log depth).
    """
    order = lines.copy()
    active = np.arange(
        len(order), dtype=np.int64
    )  # places in `order` that are in a group of several
    group = np.zeros(len(order), dtype=np.int64)  # for each active place, its group's number
    level = np.zeros(len(order), dtype=np.int64)
    while len(active):
        level = _shared_by_group(table, order[active], group, level)
        members = order[active]
        ends_here = table.depths[members] <= level
        value = np.where(ends_here, 0, _hash_at(table, members, level))
        child = _number_children(group, ends_here, value, members)
        arranged = np.lexsort((members, child))
        order[active] = members[arranged]
        child, ended, level = child[arranged], ends_here[arranged], level[arranged]
        alone = np.bincount(child)[child] == 1
        going_on = ~alone & ~ended
        active, level = active[going_on], level[going_on] + 1
        group = _renumbered(child[going_on])
    return order


def shared_depths(table: HashTable, order: Ints) -> Ints:
    """(len(order),): leading hashes that each line shares with the one before it in ``order``; 0 for the first."""
    shared = np.zeros(len(order), dtype=np.int64)
    if len(order) < 2:
        return shared
    left, right = order[:-1], order[1:]
    low = np.zeros(len(left), dtype=np.int64)
    high = np.minimum(table.depths[left], table.depths[right])
    while np.any(low < high):
        middle = (low + high) // 2
        is_open = low < high
        at = np.where(is_open, middle, 0)
        equal = is_open & (_hash_at(table, left, at) == _hash_at(table, right, at))
        low = np.where(equal, middle + 1, low)
        high = np.where(is_open & ~equal, middle, high)
    shared[1:] = low
    return shared


def _hash_at(table: HashTable, lines: Ints, position: Ints) -> Hashes:
    if not len(table.hashes):
        return np.zeros(len(lines), dtype=np.uint64)
    found: Hashes = table.hashes[np.minimum(table.starts[lines] + position, len(table.hashes) - 1)]
    return found


def _shared_by_group(table: HashTable, members: Ints, group: Ints, level: Ints) -> Ints:
    """For each member the number of leading hashes that its whole group shares, at least ``level``."""
    firsts = np.flatnonzero(np.diff(group, prepend=-1))
    leader = np.repeat(members[firsts], np.diff(firsts, append=len(members)))
    least = np.minimum.reduceat(table.depths[members], firsts)
    low, high = level[firsts].copy(), least
    while np.any(low < high):
        middle = (low + high) // 2
        is_open = low < high
        at = np.where(is_open, middle, 0)[group]
        equal = _hash_at(table, members, at) == _hash_at(table, leader, at)
        whole = np.logical_and.reduceat(equal, firsts) & is_open
        low = np.where(whole, middle + 1, low)
        high = np.where(is_open & ~whole, middle, high)
    shared: Ints = low[group]
    return shared


def _number_children(
    group: Ints, ends_here: npt.NDArray[np.bool_], value: Hashes, members: Ints
) -> Ints:
    """A number for each member's child: in order of groups, then lines that end, then by the child's first line."""
    arranged = np.lexsort((members, value, ~ends_here, group))
    by = [part[arranged] for part in (group, ends_here, value)]
    is_first = np.ones(len(arranged), dtype=bool)
    is_first[1:] = (by[0][1:] != by[0][:-1]) | (by[1][1:] != by[1][:-1])
    is_first[1:] |= by[2][1:] != by[2][:-1]
    run = np.cumsum(is_first) - 1
    firsts = np.flatnonzero(is_first)
    ranked = np.lexsort((members[arranged[firsts]], ~by[1][firsts], by[0][firsts]))
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[ranked] = np.arange(len(firsts))
    child = np.empty(len(group), dtype=np.int64)
    child[arranged] = rank[run]
    return child


def _renumbered(sorted_numbers: Ints) -> Ints:
    """0, 1, 2, ... for runs of equal numbers."""
    if not len(sorted_numbers):
        return sorted_numbers
    numbered: Ints = np.cumsum(np.diff(sorted_numbers, prepend=sorted_numbers[0]) != 0)
    return numbered
