# SPDX-License-Identifier: Apache-2.0
"""Items in order of a fixed rank, with cheap removal from anywhere."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import count
from typing import Any, Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class LazyHeap(Generic[T]):
    """Items by ascending rank; equal ranks in order of addition.

    Add is O(log n), peek amortised O(log n), remove O(1): what was removed stays in the heap
    as a dead entry until it surfaces, or until dead entries outnumber the living.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Any, int, T]] = []
        self._serial_of: dict[T, int] = {}
        self._serial = count()

    def __len__(self) -> int:
        return len(self._serial_of)

    def __contains__(self, item: T) -> bool:
        return item in self._serial_of

    def add(self, item: T, rank: Any) -> None:
        """Put ``item`` in its place. Raises ValueError if it waits already."""
        if item in self._serial_of:
            raise ValueError(f"{item!r} waits already")
        serial = next(self._serial)
        self._serial_of[item] = serial
        heapq.heappush(self._heap, (rank, serial, item))

    def peek(self) -> tuple[Any, T]:
        """The first item and its rank. Raises IndexError when the heap is empty."""
        heap = self._heap
        while heap:
            rank, serial, item = heap[0]
            if self._serial_of.get(item) == serial:
                return rank, item
            heapq.heappop(heap)
        raise IndexError("peek from an empty heap")

    def remove(self, item: T) -> None:
        """Take ``item`` out. Raises KeyError if it does not wait here."""
        del self._serial_of[item]
        if not self._serial_of:  # an idle heap keeps nobody who has left
            self._heap.clear()
        elif len(self._heap) > 2 * len(self._serial_of) + 64:
            self._heap = self._living()
            heapq.heapify(self._heap)

    def __iter__(self) -> Iterator[T]:
        """Items in order; read-only, O(n log n)."""
        return (item for _, item in self.ranked())

    def ranked(self) -> Iterator[tuple[Any, T]]:
        """(rank, item) in order; read-only, O(n log n)."""
        living = sorted(self._living(), key=lambda entry: entry[:2])
        return ((rank, item) for rank, _, item in living)

    def _living(self) -> list[tuple[Any, int, T]]:
        serial_of = self._serial_of
        return [entry for entry in self._heap if serial_of.get(entry[2]) == entry[1]]

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        living = self._living()
        assert {item for _, _, item in living} == set(self._serial_of), "an item lost its entry"
        assert len(living) == len(self._serial_of), "an item has two entries"
