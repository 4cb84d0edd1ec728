# SPDX-License-Identifier: Apache-2.0
"""Which items kill engines, where many engines compute them: once is bad luck, twice is a suspicion.

Machines are taken away, so what was with a replica that died goes back to all. What was there twice is tried again by one replica
that has nothing else, ever fewer items at once, until one is found guilty. So an item costs a number of deaths that grows with the
logarithm of what is with an engine, however many replicas there are.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_batchllm.replicas.suspects import Suspects

_TWICE = 2


class Deaths:
    """Counts deaths by item, and says what becomes of those that were with a replica that died."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._suspected: dict[int, None] = {}
        self._trial: Suspects | None = None
        self._group: list[int] = []

    @property
    def num_suspected(self) -> int:
        """Items that wait to be tried alone; those under trial are not among them."""
        waiting = [] if self._trial is None else self._trial.waiting
        return len(self._suspected) + len(waiting) - len(self._group)

    def died(self, in_flight: Sequence[int]) -> list[int]:
        """A replica died that had these in the ordinary way. Returns those that go back to all; the others are suspected."""
        back: list[int] = []
        for item in in_flight:
            count = self._counts[item] = self._counts.get(item, 0) + 1
            if count >= _TWICE:
                self._suspected[item] = None
            else:
                back.append(item)
        return back

    def next_trial(self) -> list[int]:
        """Items that a replica with nothing else tries now, and nobody beside; empty if there are none, or another does."""
        if self._group:
            return []
        if self._trial is None or not self._trial.waiting:
            if not self._suspected:
                return []
            self._trial = Suspects()
            self._trial.suspect(list(self._suspected))
            self._suspected.clear()
        self._group = self._trial.next_group()
        return self._group

    def survived(self) -> None:
        """All items under trial have been answered."""
        assert self._trial is not None
        self._trial.cleared(self._group)
        for item in self._group:
            self._counts.pop(item, None)
        self._group = []

    def died_on_trial(self, in_flight: Sequence[int]) -> tuple[int | None, list[int]]:
        """The replica died with these of the items under trial. Returns the one that is guilty, and what goes back to all."""
        assert self._trial is not None
        on_trial = set(self._group)
        others = [item for item in self._trial.waiting if item not in on_trial]
        self._group = []
        guilty = self._trial.died(in_flight) if in_flight else None
        if guilty is not None:
            self._counts.pop(guilty, None)
        return guilty, others
