# SPDX-License-Identifier: Apache-2.0
"""How far a command is: a bar on a terminal, else a plain line now and then, so that files stay readable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

LINE_EVERY_S = 30.0
"""Between two plain lines: few enough for a log, often enough to see that it goes on."""


def time_text(seconds: float) -> str:
    """A time that is only known about: `40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Work that is counted, shown on standard error while it is done; a context manager.

    total: of all work, in `unit`. clock: seconds.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._unit, self._clock = total, unit, clock
        self._stream = stream or sys.stderr
        self._bar = _bar(total, unit, self._stream) if self._stream.isatty() else None
        self._text, self._num_done = "", 0
        self._began_s = self._told_s = clock()

    def describe(self, text: str) -> None:
        """Say what is being done from now on."""
        self._text = text
        if self._bar is not None:
            self._bar.set_description_str(text)

    def advance(self, number: int = 1) -> None:
        """So much more is done."""
        self._num_done += number
        if self._bar is not None:
            self._bar.update(number)
        elif self._clock() - self._told_s >= LINE_EVERY_S:
            self.say(self._line())

    def say(self, line: str) -> None:
        """A line that stays."""
        self._told_s = self._clock()
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing more is shown."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        done = f"{self._text}: {self._num_done:,} of {self._total:,} {self._unit}"
        if not 0 < self._num_done < self._total:
            return done
        spent_s = self._clock() - self._began_s
        left_s = spent_s * (self._total - self._num_done) / self._num_done
        return f"{done}, about {time_text(left_s)} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _bar(total: int, unit: str, stream: TextIO) -> Any:
    from tqdm import tqdm

    return tqdm(
        total=total, unit=f" {unit}", unit_scale=True, file=stream, dynamic_ncols=True, leave=False
    )
