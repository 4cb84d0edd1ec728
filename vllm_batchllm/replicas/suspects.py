# SPDX-License-Identifier: Apache-2.0
"""Which line kills the engine: those that were with it when it died are tried again, ever fewer at once."""

from __future__ import annotations

from collections.abc import Sequence

_PARTS = 16
_TWICE = 2


class Suspects:
    """Lines that were with an engine when it died, and have not been answered since.

    A line is guilty if it was alone with an engine that died, and with another one before: at most
    ``1 + log(window) / log(16)`` deaths, rounded up, and two where it was alone from the start.
    """

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._num_deaths: dict[int, int] = {}
        self._width = 0

    @property
    def waiting(self) -> list[int]:
        """All that are still suspected."""
        return self._waiting.copy()

    def suspect(self, lines: Sequence[int]) -> None:
        """Begin with these, which nobody has seen kill an engine alone."""
        self._waiting, self._num_deaths = list(lines), {}
        self._width = max(1, len(self._waiting) // _PARTS)

    def died(self, in_flight: Sequence[int]) -> int | None:
        """The engine died with these lines, oldest first. Returns the one that is guilty, once that is known."""
        deaths = {line: self._num_deaths.get(line, 0) + 1 for line in in_flight}
        self._num_deaths = deaths
        if len(deaths) == 1:
            (line,) = deaths
            if deaths[line] >= _TWICE:
                self._waiting = []
                return line
        self._waiting = list(in_flight)
        self._width = max(1, len(self._waiting) // _PARTS)
        return None

    def next_group(self) -> list[int]:
        """Those to be tried next, alone; empty once nobody is suspected."""
        return self._waiting[: self._width]

    def cleared(self, group: Sequence[int]) -> None:
        """These have been answered."""
        innocent = set(group)
        self._waiting = [line for line in self._waiting if line not in innocent]
