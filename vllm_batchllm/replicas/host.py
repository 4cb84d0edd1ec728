# SPDX-License-Identifier: Apache-2.0
"""What runs where a replica is: a worker around an engine, and what the driver asks of it. Knows nothing of Ray."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Protocol

from vllm_batchllm.compat.version import installed_vllm_version
from vllm_batchllm.plugin.job_process import begin_job
from vllm_batchllm.replicas.replica import Capacity, Given, Taken

_GATHER_S = 0.05
"""So long answers are gathered before they are sent."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """num_running: requests that the engine computes. life: changes with every step. figures: totals."""

    num_running: int = 0
    life: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)


class Worker(Protocol):
    """An engine with its own thread. What it answers goes to its `Outbox`."""

    def start(self) -> Capacity:
        """Start the engine; blocks until it is ready. Raises whatever keeps it from starting."""

    def give(self, given: Sequence[Given]) -> None:
        """Take items, and return at once."""

    def state(self) -> WorkerState:
        """How it is."""

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Whatever else can be asked of this kind of worker."""


class WorkerDiedError(RuntimeError):
    """The engine of a worker has died; says why."""


class Outbox:
    """Answers until they are fetched; safe between threads."""

    def __init__(self) -> None:
        self._answers: list[Given] = []
        self._failure: str | None = None
        self._came = threading.Condition()

    def put(self, item: int, answer: Any) -> None:
        """One more answer."""
        with self._came:
            self._answers.append((item, answer))
            self._came.notify_all()

    def fail(self, reason: str) -> None:
        """No more will come."""
        with self._came:
            self._failure = self._failure or reason
            self._came.notify_all()

    def fetch(self, wait_s: float) -> list[Given]:
        """All answers so far; waits at most ``wait_s`` for one, and then a moment for more.

        Raises:
            WorkerDiedError: no more will come; those that came before are lost, as their sender is.
        """
        with self._came:
            if not self._answers and self._failure is None:
                self._came.wait(wait_s)
            gather_until = time.monotonic() + min(_GATHER_S, wait_s)
            while self._answers and self._failure is None:
                left = gather_until - time.monotonic()
                if left <= 0 or not self._came.wait(left):
                    break
            if self._failure is not None and not self._answers:
                raise WorkerDiedError(self._failure)
            answers, self._answers = self._answers, []
            return answers


MakeWorker = Callable[[Outbox], Worker]


class ReplicaHost:
    """Methods that the driver calls, several at a time, each in a thread of its own.

    Args:
        name: of the replica, for logs and the dashboard.
        make_worker: makes the worker; travels to where the replica is.
        tell: gets the worker's state whenever the driver asks for answers.
    """

    def __init__(
        self,
        name: str,
        make_worker: MakeWorker,
        tell: Callable[[WorkerState], None] = lambda state: None,
    ) -> None:
        begin_job()  # the engine's processes end with this one
        self._name, self._tell = name, tell
        self._outbox = Outbox()
        self._worker = make_worker(self._outbox)

    def __repr__(self) -> str:
        """Stands before each line that it logs."""
        return self._name

    def versions(self) -> dict[str, str]:
        """Of what has to be the same everywhere."""
        return installed_versions()

    def start(self) -> Capacity:
        """See `Worker.start`."""
        return self._worker.start()

    def give(self, given: Sequence[Given]) -> None:
        """See `Worker.give`."""
        self._worker.give(given)

    def take(self, wait_s: float) -> Taken:
        """Answers and state. Raises WorkerDiedError."""
        answers = self._outbox.fetch(wait_s)
        state = self._worker.state()
        self._tell(state)
        return Taken(answers, state.num_running, state.life, state.figures)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """See `Worker.call`."""
        return self._worker.call(method, *args, **kwargs)


def installed_versions() -> dict[str, str]:
    """Versions that decide whether one machine understands another, and computes the same."""
    return {
        "Python": platform.python_version(),
        "vllm": str(installed_vllm_version()),
        "vllm-batchllm": metadata.version("vllm-batchllm"),
    }
