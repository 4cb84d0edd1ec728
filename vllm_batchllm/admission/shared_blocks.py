# SPDX-License-Identifier: Apache-2.0
"""Runs of blocks that several running requests share, and when each is given back.

Requests are admitted depth first, so a request shares most with the one admitted before it.
That is all the sharing recorded here: a run belongs to an unbroken interval of requests in order
of admission, and is given back when the last of them ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_START, _END, _FIRST, _LAST = range(4)

MANY = np.iinfo(np.int64).max
"""More tokens than any request has."""


@dataclass(frozen=True, slots=True)
class RunsAhead:
    """Runs as they are now: units [start, end), the steps until the last of their requests ends,
    and the tokens of the request among them that has the fewest."""

    start: Ints
    end: Ints
    ends: Ints
    tokens: Ints

    @classmethod
    def none(cls) -> RunsAhead:
        """No runs at all."""
        return cls(*(np.empty(0, np.int64) for _ in range(4)))

    def plus(self, run: tuple[int, int, int, int]) -> RunsAhead:
        """With one run more."""
        columns = (self.start, self.end, self.ends, self.tokens)
        return RunsAhead(*(np.append(one, value) for one, value in zip(columns, run, strict=True)))


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Whom an entrant would share with: covered units are in runs already."""

    serial: int
    covered: int
    tokens: int
    remaining: int


class SharedRuns:
    """A table of runs: units [start, end) of a prefix, shared by requests first .. last.

    A unit is as many tokens as prefixes are shared in; a block, where all layers are alike.

    Requests are known by their serial number, in order of admission. Everything is vectorised
    over the runs.
    """

    def __init__(self) -> None:
        self._table: Ints = np.empty((4, 64), np.int64)
        self._number = 0
        self._open: list[int] = []
        self._open_serial = -1
        """The runs that reach request ``_open_serial``, from the first unit on. A start looks at no others."""
        self.num_units = 0
        """Units of all runs together."""

    def join(self, serial: int, shared: int, neighbour: int, covered: int) -> bool:
        """Let request ``serial`` share the first ``shared`` units of ``neighbour``.

        ``covered`` of the neighbour's units are in runs already. True if a new run was made
        out of units that were the neighbour's own.
        """
        table, joined, is_cut = self._table, [], False
        for at in self._open_at(neighbour):
            if table.item(_END, at) <= shared:
                table[_LAST, at] = serial
                joined.append(at)
            elif (start := table.item(_START, at)) < shared:
                table[_START, at] = shared
                self.num_units -= shared - start
                upper, is_cut = (start, shared, table.item(_FIRST, at), serial), True
        is_new = not is_cut and shared > covered
        if is_new:
            upper = (covered, shared, neighbour, serial)
        if is_cut or is_new:
            self._append(upper)
            joined.append(self._number - 1)
        self._open, self._open_serial = joined, serial
        return is_new

    def __len__(self) -> int:
        return self._number

    def drop_ended(self, serials: Ints) -> None:
        """Forget runs none of whose requests is among ``serials`` (ascending)."""
        self._open_serial = -1
        if not self._number:
            return
        low, high = self._bounds(serials).T
        alive = low < high
        kept = self._runs[:, alive]
        self._number = kept.shape[1]
        self.num_units = int((kept[_END] - kept[_START]).sum())
        self._table[:, : self._number] = kept

    def ahead(self, serials: Ints, tokens: Ints, remaining: Ints) -> RunsAhead:
        """The runs as they are, for requests ``serials`` (ascending) of so many ``tokens``."""
        runs = self._runs
        if not self._number:
            return RunsAhead.none()
        bounds = self._bounds(serials).ravel()
        ends = np.maximum.reduceat(np.append(remaining, 0), bounds)[::2]
        fewest = np.minimum.reduceat(np.append(tokens, MANY), bounds)[::2]
        return RunsAhead(runs[_START], runs[_END], ends, fewest)

    def ahead_with(
        self, now: RunsAhead, shared: int, neighbour: Neighbour, tokens: int, remaining: int
    ) -> tuple[RunsAhead, int]:
        """``now`` as it would be if an entrant shared the first ``shared`` units of ``neighbour``.

        tokens, remaining: of the entrant. Also the neighbour's units in runs then.
        """
        runs, covered = self._runs, neighbour.covered
        is_open = runs[_LAST] >= neighbour.serial
        joined = is_open & (runs[_END] <= shared)
        ends = np.where(joined, np.maximum(now.ends, remaining), now.ends)
        fewest = np.where(joined, np.minimum(now.tokens, tokens), now.tokens)
        cut = self._cut_by(shared, is_open)
        if len(cut):
            at = int(cut[0])
            start = now.start.copy()
            start[at] = shared
            upper = (
                int(now.start[at]),
                shared,
                max(int(ends[at]), remaining),
                min(int(fewest[at]), tokens),
            )
            return RunsAhead(start, now.end, ends, fewest).plus(upper), covered
        now = RunsAhead(now.start, now.end, ends, fewest)
        if shared > covered:
            run = (
                covered,
                shared,
                max(neighbour.remaining, remaining),
                min(neighbour.tokens, tokens),
            )
            return now.plus(run), shared
        return now, covered

    @property
    def _runs(self) -> Ints:
        return self._table[:, : self._number]

    def _open_at(self, serial: int) -> list[int]:
        """Columns of the runs that reach request ``serial``, the latest; O(runs) if it joined none."""
        if self._open_serial != serial:
            self._open = np.flatnonzero(self._runs[_LAST] >= serial).tolist()
            self._open_serial = serial
        return self._open

    def _cut_by(self, shared: int, is_open: npt.NDArray[np.bool_]) -> Ints:
        """The open run, if any, that a share of ``shared`` units ends inside of."""
        runs = self._runs
        return np.flatnonzero(is_open & (runs[_START] < shared) & (runs[_END] > shared))

    def _bounds(self, serials: Ints) -> Ints:
        """[run, (first, behind last)]: positions of its requests in ``serials``."""
        runs = self._runs
        low = np.searchsorted(serials, runs[_FIRST])
        high = np.searchsorted(serials, runs[_LAST], side="right")
        return np.stack((low, high), axis=1)

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(runs)."""
        runs = self._runs
        assert self.num_units == int((runs[_END] - runs[_START]).sum()), "units are miscounted"
        if self._open_serial >= 0:
            reaching = np.flatnonzero(runs[_LAST] >= self._open_serial).tolist()
            assert sorted(self._open) == reaching, "the open runs are not those of the latest"

    def _append(self, run: tuple[int, int, int, int]) -> None:
        self._table = with_room(self._table, self._number)
        self._table[:, self._number] = run
        self.num_units += run[_END] - run[_START]
        self._number += 1


def blocks_held(sizes: Ints, ends: Ints, times: Ints) -> Ints:
    """Blocks of the runs that are still held at each of ``times``."""
    order = np.argsort(-ends)
    total = np.concatenate(([0], np.cumsum(sizes[order])))
    held: Ints = total[np.searchsorted(-ends[order], -times, side="right")]
    return held


def with_room(table: Ints, used: int) -> Ints:
    """``table`` itself, or twice as wide if all its columns are used."""
    if used < table.shape[1]:
        return table
    return np.concatenate((table, np.empty_like(table)), axis=1)
