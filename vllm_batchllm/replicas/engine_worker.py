# SPDX-License-Identifier: Apache-2.0
"""The engine behind ``LLM`` where a replica is: fed while it runs, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vllm.exceptions import VLLMServerError

from vllm_batchllm.offline.batch import Batch
from vllm_batchllm.offline.engine import OfflineEngine
from vllm_batchllm.offline.engine_core import call_core
from vllm_batchllm.offline.outputs import FailedRequestOutput
from vllm_batchllm.replicas.host import Outbox, WorkerDiedError, WorkerState
from vllm_batchllm.replicas.replica import Capacity, Given
from vllm_batchllm.stats.counters import ScheduleCounters

_IDLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. kind: "prompt" or "chat". options: of its own, by the names that ``enqueue`` gives them."""

    kind: str
    prompt: Any
    params: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """About, of the prompt's text or token ids; images are not counted."""
        prompt = self.prompt
        if isinstance(prompt, Mapping):
            prompt = prompt.get("prompt_token_ids") or prompt.get("prompt") or ""
        if isinstance(prompt, str):
            return len(prompt)
        if not isinstance(prompt, Sequence):
            return len(repr(type(prompt)))
        return sum(4 if isinstance(one, int) else len(repr(one)) for one in prompt)


@dataclass(frozen=True, slots=True)
class BatchBooks:
    """What one engine has done of a batch. counters: of its scheduler, for this batch.

    tokens, namespaces, limits: of what it computed, see `Batch`.
    """

    counters: Mapping[str, Any]
    num_duplicates: int
    num_unshared: int
    output_tokens: int
    tokens: Sequence[Any]
    namespaces: Sequence[Any]
    limits: Sequence[Any]


class FedEngine(OfflineEngine):
    """Takes requests while it runs others; an answer that a duplicate may still ask for is kept.

    Its own methods that run a batch (``encode``, ``beam_search``) work as ever, between two batches that are fed.
    """

    _fed: Batch | None = None
    """The batch that is fed, or was last."""
    _fed_counters: Mapping[str, Any] | None = None
    """What the scheduler had done when that batch ended; None while it goes on."""

    def begin(self) -> None:
        """Begin a batch; what is left of another is given up."""
        if self._fed is not None:
            self.llm_engine.abort_request(sorted(self._fed.engine_ids), internal=True)
        self._fed = Batch(before=call_core(self.llm_engine, "batchllm_counters"))
        self._fed.backlog = iter(())  # more may come
        self._fed_counters = None

    def end(self) -> None:
        """All of the batch is answered."""
        self._fed_counters = call_core(self.llm_engine, "batchllm_counters")

    def add(self, asked: Asked) -> str:
        """Queue one request; returns its number. Raises whatever vLLM refuses it with."""
        add = self.enqueue_chat if asked.kind == "chat" else self.enqueue
        self._batch = self._fed
        try:
            (engine_id,) = add([asked.prompt], asked.params, **asked.options, use_tqdm=False)
        finally:
            self._batch = None
        return str(engine_id).partition("-")[0]

    def advance(self) -> list[Any]:
        """One step of what is fed; what has ended with it."""
        batch = self._fed
        assert batch is not None
        outputs: list[Any] = []
        if self.llm_engine.has_unfinished_requests():
            for output in self.llm_engine.step():
                if output.finished:
                    outputs += batch.finish(output)
        outputs += batch.take_ready()
        if not self.llm_engine.has_unfinished_requests():
            self._stand_in(batch)
        return outputs

    def is_busy(self) -> bool:
        """Whether a step would bring anything."""
        batch = self._fed
        return batch is not None and bool(
            batch.ready or batch.followers or self.llm_engine.has_unfinished_requests()
        )

    def books(self) -> BatchBooks | None:
        """Of the batch that has ended last; None if there is none."""
        batch, after = self._fed, self._fed_counters
        if batch is None or after is None:
            return None
        return BatchBooks(
            ScheduleCounters.between(batch.before, dict(after)).to_dict(),
            batch.num_duplicates,
            batch.num_unshared,
            batch.output_tokens,
            batch.tokens,
            batch.namespaces,
            batch.limits,
        )

    @contextmanager
    def _queueing(self) -> Iterator[None]:
        """What is fed does not hold the engine, which runs already."""
        batch = self._fed
        if batch is None or self._batch is not batch:
            with super()._queueing():
                yield
            return
        batch.begin_call()
        try:
            with self._taking(self._intake_into(batch)):
                yield
        except BaseException:
            self.llm_engine.abort_request(batch.undo_call(), internal=True)
            raise


class EngineWorker:
    """A `Worker` whose items are `Asked`, and whose answers are vLLM's outputs.

    Args:
        model, kwargs: as ``LLM`` takes them.
    """

    def __init__(self, model: str, kwargs: Mapping[str, Any], outbox: Outbox) -> None:
        self._model, self._kwargs, self._outbox = model, dict(kwargs), outbox
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._engine: Any = None
        self._items: dict[str, int] = {}
        self._num_steps = self._num_running = 0
        self._max_num_seqs = 1

    def start(self) -> Capacity:
        """Load the model. Raises whatever keeps it from that."""
        threading.Thread(target=self._run, name="engine", daemon=True).start()
        self._ready.wait()
        if self._failure is not None:
            raise RuntimeError(f"the engine could not be started: {self._failure}")
        return Capacity(self._max_num_seqs)

    def give(self, given: Sequence[Given]) -> None:
        """Take requests."""
        self._inbox.put(list(given))

    def state(self) -> WorkerState:
        """By its own count."""
        return WorkerState(self._num_running, self._num_steps)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """``begin``, ``end``, ``books``, ``attribute``, or a method of the engine; between two steps, in its thread. Raises what that raises."""
        asked = _Call(method, args, kwargs)
        self._inbox.put(asked)
        while not asked.done.wait(_IDLE_S):
            if self._failure is not None:
                raise WorkerDiedError(f"the engine has died: {self._failure}")
        if asked.error is not None:
            raise asked.error
        return asked.result

    def _run(self) -> None:
        try:
            self._engine = FedEngine(self._model, **self._kwargs)
            config = self._engine.llm_engine.vllm_config
            self._max_num_seqs = int(config.scheduler_config.max_num_seqs)
            self._ready.set()
            while True:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            self._failure = error
            self._outbox.fail(f"{type(error).__name__}: {error}")
        finally:
            self._ready.set()

    def _turn(self) -> None:
        """Take what has come, and make a step."""
        engine = self._engine
        is_first = True
        while True:
            try:
                came = self._inbox.get(block=is_first and not engine.is_busy())
            except queue.Empty:
                break
            is_first = False
            if isinstance(came, _Call):
                came.run(self)
            else:
                for item, asked in came:
                    self._add(item, asked)
        if engine.is_busy():
            for output in engine.advance():
                item = self._items.pop(output.request_id, None)
                if item is not None:
                    self._outbox.put(item, output)
            self._num_steps += 1
        unfinished = engine.llm_engine.get_num_unfinished_requests()
        self._num_running = min(unfinished, self._max_num_seqs)

    def _add(self, item: int, asked: Asked) -> None:
        try:
            self._items[self._engine.add(asked)] = item
        except VLLMServerError:
            raise
        except Exception as error:  # noqa: BLE001 - a refusal is this request's own answer
            failed = FailedRequestOutput(str(item), asked.prompt, error)
            self._outbox.put(item, failed)

    def begin(self) -> None:
        """A batch begins."""
        self._engine.begin()
        self._items.clear()
        self._outbox.fetch(0.0)

    def end(self) -> None:
        """The batch is over."""
        self._engine.end()

    def books(self) -> BatchBooks | None:
        """See `FedEngine.books`."""
        found: BatchBooks | None = self._engine.books()
        return found

    def attribute(self, name: str) -> Any:
        """The value of an attribute of the engine."""
        return getattr(self._engine, name)

    def engine_method(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a method of the engine."""
        return getattr(self._engine, name)(*args, **kwargs)

    def piece(self, piece: tuple[Sequence[Any], Mapping[str, Any]], name: str) -> Any:
        """The same, with its arguments in one."""
        return self.engine_method(name, *piece)


class _Call:
    """A call on its way to the engine's thread and back."""

    def __init__(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._method, self._args, self._kwargs = method, args, kwargs
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None

    def run(self, worker: EngineWorker) -> None:
        try:
            self.result = getattr(worker, self._method)(*self._args, **self._kwargs)
        except Exception as error:  # noqa: BLE001 - raised where it was called from
            self.error = error
        finally:
            self.done.set()
