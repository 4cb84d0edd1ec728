# SPDX-License-Identifier: Apache-2.0
"""The engines behind one ``LLM`` on many replicas: loaded together, given batches, asked all at once."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, TypeVar

from vllm_batchllm.log import get_logger
from vllm_batchllm.replicas.assignment import Assignment
from vllm_batchllm.replicas.cut import Floats
from vllm_batchllm.replicas.driver import Driver
from vllm_batchllm.replicas.engine_worker import Asked, BatchBooks, EngineWorker
from vllm_batchllm.replicas.kept_replica import KeptReplica
from vllm_batchllm.replicas.prompt_order import OrderedPrompts
from vllm_batchllm.replicas.replica import Capacity, Given, ReplicaGoneError
from vllm_batchllm.replicas.slot import DriveLimits
from vllm_batchllm.replicas.start import ReplicaOptions, replicas_of

logger = get_logger(__name__)

T = TypeVar("T")
OnAnswer = Callable[[int, Any], None]


class EnginePool:
    """Replicas with one model.

    Raises:
        UsageError: no Ray, or no room for so many.
        RuntimeError: not one replica could load the model; with the reason.
    """

    def __init__(self, model: str, kwargs: Mapping[str, Any], options: ReplicaOptions) -> None:
        self._stack = ExitStack()
        make_worker = partial(EngineWorker, model, dict(kwargs))
        what = f"LLM(data_parallel_size={options.num_replicas})"
        found = self._stack.enter_context(replicas_of(options, make_worker, what))
        self.replicas = [KeptReplica(replica) for replica in found]
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        thread.start()
        self._finalizer = weakref.finalize(self, _close, self._loop, self.replicas, self._stack)
        self._run(self._load())
        self.replicas = self._loaded

    def serve(
        self,
        requests: Sequence[Asked],
        ordered: OrderedPrompts,
        on_answer: OnAnswer,
    ) -> int:
        """Compute requests; ``on_answer`` gets the place of each with its output, once, in another thread.

        Returns:
            How many engines were started again meanwhile.

        Raises:
            NoReplicaLeftError: all are gone for good.
        """
        return self._run(self._serve(_Requests(requests, ordered, on_answer)))

    def ask_all(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """What a method of every worker returns. Raises what one of them raises, or that it is gone."""

        async def ask() -> list[Any]:
            await self._load()
            return await asyncio.gather(
                *(replica.call(method, *args, **kwargs) for replica in self._loaded)
            )

        return self._run(ask())

    def ask_each(self, method: str, pieces: Sequence[T], *args: Any) -> list[Any]:
        """What a method returns for each of several pieces, at most one for each replica, computed side by side."""

        async def ask() -> list[Any]:
            await self._load()
            loaded = self._loaded
            return await asyncio.gather(
                *(
                    loaded[number % len(loaded)].call(method, piece, *args)
                    for number, piece in enumerate(pieces)
                )
            )

        return self._run(ask())

    def books(self) -> list[BatchBooks]:
        """Of the last batch, from every engine that has been there to its end."""

        async def ask() -> list[BatchBooks]:
            found = await asyncio.gather(
                *(replica.call("books") for replica in self._loaded), return_exceptions=True
            )
            return [books for books in found if isinstance(books, BatchBooks)]

        return self._run(ask())

    def close(self) -> None:
        """End all replicas, and leave Ray."""
        self._finalizer()

    async def _load(self) -> None:
        """Load the model wherever it is not; fewer replicas are better than none."""
        missing = [replica for replica in self.replicas if not replica.is_loaded]
        ends = await asyncio.gather(*(each.load() for each in missing), return_exceptions=True)
        failures = [
            (replica, end)
            for replica, end in zip(missing, ends, strict=True)
            if isinstance(end, BaseException)
        ]
        for replica, error in failures:
            await replica.end()
            logger.warning("%s could not load the model: %s", replica.name, error)
        if len(failures) == len(self.replicas):
            raise RuntimeError(f"no replica could load the model: {failures[0][1]}")

    async def _serve(self, requests: _Requests) -> int:
        costs = requests.ordered.costs
        assignment = Assignment(costs, [replica.name for replica in self.replicas])
        driver = Driver(self.replicas, assignment, requests, DriveLimits(), costs.work)
        await driver.run(asyncio.Event())
        for replica in self._loaded:
            with suppress(ReplicaGoneError):
                await replica.call("end")
        return driver.num_restarts

    @property
    def _loaded(self) -> list[KeptReplica]:
        return [replica for replica in self.replicas if replica.is_loaded]

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for it; interrupted, cancel it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


class _Requests:
    """A batch as `Work`: an item is a place in the depth-first order."""

    def __init__(
        self, requests: Sequence[Asked], ordered: OrderedPrompts, on_answer: OnAnswer
    ) -> None:
        self._requests, self.ordered, self._on_answer = requests, ordered, on_answer
        self._num_answers = self._num_output = 0

    async def load(self, items: Sequence[int], capacity: Capacity) -> list[Given]:
        """By value, as they are in this process alone."""
        return [(item, self._requests[int(self.ordered.order[item])]) for item in items]

    async def answered(self, item: int, answer: Any) -> None:
        """Hand it to the caller."""
        self._num_answers += 1
        outputs = getattr(answer, "outputs", ())
        self._num_output += sum(len(each.token_ids) for each in outputs)
        self._on_answer(int(self.ordered.order[item]), answer)

    async def give_up(self, item: int) -> None:
        """Its output says so."""
        from vllm_batchllm.offline.outputs import FailedRequestOutput

        place = int(self.ordered.order[item])
        error = RuntimeError(f"prompt {place} has killed engines; it was not tried again")
        failed = FailedRequestOutput(str(place), self._requests[place].prompt, error)
        await self.answered(item, failed)

    def work_now(self) -> Floats | None:
        """By the mean length of outputs so far."""
        if not self._num_answers:
            return None
        work: Floats = self.ordered.prefill + self._num_output / self._num_answers
        return work


def _close(
    loop: asyncio.AbstractEventLoop, replicas: Sequence[KeptReplica], stack: ExitStack
) -> None:
    async def end() -> None:
        await asyncio.gather(*(replica.end() for replica in replicas), return_exceptions=True)

    with suppress(Exception):
        asyncio.run_coroutine_threadsafe(end(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    stack.close()
