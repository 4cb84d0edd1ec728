# SPDX-License-Identifier: Apache-2.0
"""The figures of the Batch API on ``/metrics``. Of several server processes the one that runs the batches sets them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from vllm_batchllm.jobs.session import JobSession

PREFIX = "vllm_batchllm:batch_api"
STATES = ("validating", "in_progress", "finalizing", "cancelling")
MODE: Final = "livemostrecent"


class BatchMetrics:
    """Families of the Batch API in a registry; made once in a process.

    The label `batch` is of those that run, `--batch-concurrency` at most; it goes when one ends.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(
                f"{PREFIX}_{name}",
                text,
                labels,
                registry=registry,
                multiprocess_mode=MODE,
            )

        self._unfinished = gauge("unfinished_batches", "Batches that are not finished.", "status")
        self._age = gauge(
            "oldest_batch_age_seconds", "Age of the oldest unfinished batch; 0 without one."
        )
        self._progress = gauge(
            "running_batch_lines", "Lines of a batch that runs.", "batch", "outcome"
        )
        self._saved = gauge(
            "running_batch_planned_saved_share",
            "Share of a running batch's prompt text that its plan computes once for several lines.",
            "batch",
        )
        self._lines = Counter(
            f"{PREFIX}_lines", "Lines answered, by outcome.", ["outcome"], registry=registry
        )
        self._shown: set[str] = set()
        # With several server processes a label stays for ever.
        self._has_labels = "PROMETHEUS_MULTIPROC_DIR" not in os.environ

    def show(
        self,
        by_state: Mapping[str, int],
        oldest: int | None,
        now: float,
        sessions: Mapping[str, JobSession],
    ) -> None:
        """Set what is so now.

        Args:
            oldest: when the oldest unfinished batch was created, seconds since 1970, as ``now``.
            sessions: of the batches that run, by id.
        """
        for state in STATES:
            self._unfinished.labels(state).set(by_state.get(state, 0))
        self._age.set(0.0 if oldest is None else max(now - oldest, 0.0))
        for name in self._shown - set(sessions):
            self._forget(name)
        for name, session in sessions.items() if self._has_labels else ():
            self._show_session(name, session)

    def clear(self) -> None:
        """Another process shows them."""
        self.show({}, None, 0.0, {})

    def count(self, lines: Mapping[str, int]) -> None:
        """Lines have been answered: so many, by outcome."""
        for outcome, number in lines.items():
            self._lines.labels(outcome).inc(max(number, 0))

    def _show_session(self, name: str, session: JobSession) -> None:
        if name not in self._shown:
            self._shown.add(name)
            self._saved.labels(name).set(saved_share(session))
        for outcome in ("total", "completed", "failed"):
            self._progress.labels(name, outcome).set(getattr(session.counts, outcome))

    def _forget(self, name: str) -> None:
        self._shown.discard(name)
        self._saved.remove(name)
        for outcome in ("total", "completed", "failed"):
            self._progress.remove(name, outcome)


def saved_share(session: JobSession) -> float:
    """Share of the prompt text of a session's lines that is computed for another line anyway, from 0 to 1."""
    plan, source = session.plan, session.source
    asked = int(source.text_bytes[~plan.is_refused].sum())
    return 1 - plan.num_new_bytes / asked if asked else 0.0
