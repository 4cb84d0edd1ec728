# SPDX-License-Identifier: Apache-2.0
"""Runs of blocks that several running requests share, and when each is given back.

Requests are admitted depth first, so a request shares most with the one admitted before it.
That is all the sharing recorded here: a run belongs to an unbroken interval of requests in order
of admission, and is given back when the last of them ends.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_START, _END, _FIRST, _LAST = range(4)


class SharedRuns:
    """A table of runs: blocks [start, end) of a prefix, shared by requests first .. last.

    Requests are known by their serial number, in order of admission. Everything is vectorised
    over the runs.
    """

    def __init__(self) -> None:
        self._table: Ints = np.empty((4, 64), np.int64)
        self._number = 0
        self.num_blocks = 0
        """Blocks of all runs together."""

    def join(self, serial: int, shared: int, neighbour: int, covered: int) -> bool:
        """Let request ``serial`` share the first ``shared`` blocks of ``neighbour``.

        ``covered`` of the neighbour's blocks are in runs already. True if a new run was made
        out of blocks that were the neighbour's own.
        """
        runs = self._runs
        is_open = runs[_LAST] >= neighbour
        cut = self._cut_by(shared, is_open)
        runs[_LAST, is_open & (runs[_END] <= shared)] = serial
        if len(cut):
            at = int(cut[0])
            upper = (int(runs[_START, at]), shared, int(runs[_FIRST, at]), serial)
            runs[_START, at] = shared
            self.num_blocks -= shared - upper[0]
            self._append(upper)
        elif shared > covered:
            self._append((covered, shared, neighbour, serial))
            return True
        return False

    def drop_ended(self, serials: Ints) -> None:
        """Forget runs none of whose requests is among ``serials`` (ascending)."""
        if not self._number:
            return
        low, high = self._bounds(serials).T
        alive = low < high
        kept = self._runs[:, alive]
        self._number = kept.shape[1]
        self.num_blocks = int((kept[_END] - kept[_START]).sum())
        self._table[:, : self._number] = kept

    def sizes_and_ends(self, serials: Ints, remaining: Ints) -> tuple[Ints, Ints]:
        """Blocks of each run, and steps until the last of its requests ends."""
        runs = self._runs
        if not self._number:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        padded = np.append(remaining, 0)
        ends: Ints = np.maximum.reduceat(padded, self._bounds(serials).ravel())[::2]
        return runs[_END] - runs[_START], ends

    def with_entrant(
        self, sizes: Ints, ends: Ints, shared: int, neighbour: tuple[int, int, int], lasts: int
    ) -> tuple[Ints, Ints, int]:
        """Sizes and ends as they would be if an entrant shared ``shared`` blocks.

        neighbour: serial, covered blocks and remaining steps of the one it shares with;
        ``lasts``: remaining steps of the entrant. Also the neighbour's blocks in runs then.
        """
        serial, covered, neighbour_lasts = neighbour
        runs = self._runs
        is_open = runs[_LAST] >= serial
        ends = np.where(is_open & (runs[_END] <= shared), np.maximum(ends, lasts), ends)
        cut = self._cut_by(shared, is_open)
        if len(cut):
            upper = shared - runs[_START, cut]
            sizes = sizes.copy()
            sizes[cut] -= upper
            upper_ends = np.maximum(ends[cut], lasts)
            return np.append(sizes, upper), np.append(ends, upper_ends), covered
        if shared > covered:
            sizes = np.append(sizes, shared - covered)
            return sizes, np.append(ends, max(neighbour_lasts, lasts)), shared
        return sizes, ends, covered

    @property
    def _runs(self) -> Ints:
        return self._table[:, : self._number]

    def _cut_by(self, shared: int, is_open: npt.NDArray[np.bool_]) -> Ints:
        """The open run, if any, that a share of ``shared`` blocks ends inside of."""
        runs = self._runs
        return np.flatnonzero(is_open & (runs[_START] < shared) & (runs[_END] > shared))

    def _bounds(self, serials: Ints) -> Ints:
        """[run, (first, behind last)]: positions of its requests in ``serials``."""
        runs = self._runs
        low = np.searchsorted(serials, runs[_FIRST])
        high = np.searchsorted(serials, runs[_LAST], side="right")
        return np.stack((low, high), axis=1)

    def _append(self, run: tuple[int, int, int, int]) -> None:
        self._table = with_room(self._table, self._number)
        self._table[:, self._number] = run
        self.num_blocks += run[_END] - run[_START]
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
