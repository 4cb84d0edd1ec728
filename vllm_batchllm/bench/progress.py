# SPDX-License-Identifier: Apache-2.0
"""The progress of a benchmark on standard error: each run by its tokens, and how long it will take."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Self, TextIO

from vllm_batchllm.bench.pace import Pace
from vllm_batchllm.bench.pace import Progress as Event
from vllm_batchllm.measure.metrics import RunMetrics
from vllm_batchllm.measure.progress import Progress, time_text

LONG_S = 60.0
"""What takes longer is said beforehand."""
_FIRST_STEPS_S = 5.0


class Shown:
    """Shows what `run_ab` tells; a context manager. make: of a count of tokens that are served together."""

    def __init__(
        self,
        make: Callable[[int, str], Progress] = Progress,
        stream: TextIO | None = None,
    ) -> None:
        self._make, self._stream = make, stream or sys.stderr
        self._stage = ""
        self._counted: Progress | None = None
        self._num_counted = 0
        self._foretold: set[tuple[str, bool]] = set()

    def on_progress(self, event: Event) -> None:
        """What is about to begin, how far it is, or what has ended."""
        if event.run is not None:
            self._end()
            self.say(_run_text(event.workload, event.run))
        elif event.pace is None:
            self._end()
            self._stage = f"{event.workload}: {event.stage}"
            self.say(self._stage)
        else:
            self._foretell(event, event.pace)
            self._count(event.pace)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._counted is not None:
            self._counted.say(line)
        else:
            print(line, file=self._stream, flush=True)

    def _count(self, pace: Pace) -> None:
        if self._counted is None:
            self._counted, self._num_counted = self._make(pace.tokens, "tokens"), 0
            self._counted.describe(self._stage)
        self._counted.advance(max(pace.tokens_done - self._num_counted, 0))
        self._num_counted = max(self._num_counted, pace.tokens_done)

    def _foretell(self, event: Event, pace: Pace) -> None:
        """Say once of a workload's warm-up, and once of its rounds, that it will take long."""
        key = event.workload, event.num_sharing > 0
        if key in self._foretold or pace.spent_s < _FIRST_STEPS_S or not pace.tokens_done:
            return
        self._foretold.add(key)
        at_once_s = pace.spent_s * pace.tokens / pace.tokens_done
        if not event.num_sharing:
            expected_s, what = at_once_s, "warming up"
        else:
            num_left = event.num_runs - event.num_done
            expected_s, what = at_once_s * num_left / event.num_sharing, f"{num_left} runs"
        if expected_s > LONG_S:
            self.say(
                f"{event.workload}: {what} will take about {time_text(expected_s)}, by the first steps"
            )

    def _end(self) -> None:
        if self._counted is not None:
            self._counted.close()
            self._counted = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()


def _run_text(workload: str, run: RunMetrics) -> str:
    return (
        f"{workload}  round {run.round + 1}  {run.arm:<10}  {run.makespan_s:7.2f} s  "
        f"reuse {run.reuse_efficiency:.4f}  preemptions {run.preemptions}"
    )
