# SPDX-License-Identifier: Apache-2.0
"""How far a job is: gathered once a second, shown as a bar, and written where another process finds it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vllm_batchllm.files import write_json
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.log import get_logger

logger = get_logger(__name__)

_FIRST_BYTES_PER_TOKEN = 4.0


@dataclass(slots=True)
class Figures:
    """Totals over all engines of one run of the command; tokens and seconds.

    asked_tokens, cached_tokens: prompt tokens looked up in the KV cache, and found there.
    """

    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    asked_tokens: float = 0.0
    cached_tokens: float = 0.0
    preemptions: float = 0.0

    @property
    def saved_ratio(self) -> float:
        """Share of the prompt tokens that did not have to be computed."""
        return self.cached_tokens / self.asked_tokens if self.asked_tokens else 0.0

    @property
    def computed_tokens(self) -> float:
        """Prompt tokens computed, and output."""
        return self.prompt_tokens - self.cached_tokens + self.output_tokens

    def plus(self, other: Any) -> Figures:
        """The sum of both."""
        names = asdict(self)
        return Figures(**{name: value + getattr(other, name) for name, value in names.items()})


@dataclass(slots=True)
class JobState:
    """What another process may know of a job.

    state: planning, starting, running, stopping, finishing, done, interrupted or failed.
    """

    input: str
    output: str
    state: str = "planning"
    message: str = ""
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    began_at: float = field(default_factory=time.time)
    updated_at: float = 0.0
    lines: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)
    tokens_per_s: float = 0.0
    saved_ratio: float = 0.0
    running_s: float = 0.0
    time_left_s: float | None = None
    restarts: int = 0


class Progress:
    """Keeps a job's state up to date.

    Args:
        figures: totals of the engine that runs now; starts at zero with each engine.
    """

    def __init__(self, state: JobState, status: Path, figures: Callable[[], Any]) -> None:
        self.state = state
        self.totals = Figures()
        self._status, self._figures = status, figures
        self._earlier = Figures()
        self._bar: tqdm[Any] | None = None
        self._ran_s, self._running_since = 0.0, 0.0

    def say(self, state: str, message: str = "") -> None:
        """The job is in another state now."""
        if state == "running":
            self._running_since = time.monotonic()
        elif self._running_since:
            self._ran_s += time.monotonic() - self._running_since
            self._running_since = 0.0
            self._earlier = self.totals
        self.state.state, self.state.message = state, message
        self.write()

    def show(self, session: JobSession, num_restarts: int) -> None:
        """Gather, draw, write."""
        self._gather(session, num_restarts)
        if self._bar is None:
            counts = session.counts
            self._bar = tqdm(
                total=counts.total,
                initial=counts.resumed,
                desc="Lines",
                unit="line",
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,
            )
        state = self.state
        self._bar.set_postfix_str(
            f"{state.tokens_per_s:,.0f} tok/s, saved {state.saved_ratio:.1%}, "
            f"errors {session.counts.failed:,}",
            refresh=False,
        )
        self._bar.update(session.counts.done - self._bar.n)
        self.write()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def write(self) -> None:
        """Write the state. A disk without room stops no job."""
        self.state.updated_at = time.time()
        try:
            write_json(self._status, asdict(self.state), "status", durable=False)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._status, error.strerror or error)

    def _gather(self, session: JobSession, num_restarts: int) -> None:
        counts, state = session.counts, self.state
        if self._running_since:
            self.totals = self._earlier.plus(self._figures())
        running_s = self._ran_s
        if self._running_since:
            running_s += time.monotonic() - self._running_since
        state.running_s, state.restarts = running_s, num_restarts
        state.lines = {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
            "resumed": counts.resumed,
        }
        state.errors = dict(session.books.errors)
        state.tokens = asdict(self.totals)
        state.saved_ratio = self.totals.saved_ratio
        state.tokens_per_s = self.totals.computed_tokens / running_s if running_s else 0.0
        state.time_left_s = self._time_left_s(session, state.tokens_per_s)

    def _time_left_s(self, session: JobSession, tokens_per_s: float) -> float | None:
        """What is left to compute, by the plan and by the outputs so far, at the speed so far."""
        counts = session.counts
        answered = counts.done - counts.resumed
        if not tokens_per_s or not answered:
            return None
        flow = session.flow
        bytes_per_token = _FIRST_BYTES_PER_TOKEN if flow is None else flow.bytes_per_token
        mean_output = counts.output_tokens / answered
        left = counts.new_bytes_left / bytes_per_token + (counts.total - counts.done) * mean_output
        return left / tokens_per_s


def tell_reading(lines: int, num_bytes: int) -> None:
    """Show somebody at a terminal how far the input is read."""
    if sys.stderr.isatty():
        print(f"\rreading: {lines:,} lines", end="", file=sys.stderr)
