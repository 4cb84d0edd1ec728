# SPDX-License-Identifier: Apache-2.0
"""An engine around a real scheduler: steps one by one or overlapping, and looks into everything."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from fake_worker import FakeWorker
from fuzz_books import Books
from pooled import needed_blocks, pool_of, waiting_hashes
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

PATIENCE = 60
"""Steps in which somebody must get a token or end; the longest prompt takes 15."""


class Clock:
    """Seconds that go by as they are asked for, never twice the same and always alike."""

    def __init__(self) -> None:
        self.now = 0.0
        self.num_calls = 0

    def __call__(self) -> float:
        self.num_calls += 1
        self.now += 0.001 * (1 + self.num_calls % 5)
        return self.now


class AnyGrammar(StructuredOutputGrammar):
    """Allows every text; refuses drafts beyond the first, as a grammar may."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        return tokens[:1]

    def rollback(self, num_tokens: int) -> None: ...
    def fill_bitmask(self, bitmask: Any, batch_index: int) -> None: ...
    def is_terminated(self) -> bool:
        return False

    def reset(self) -> None: ...


class FuzzEngine:
    """Does to a scheduler what vLLM's engine core does, and checks it after everything.

    Args:
        scheduler: one of ours, or vLLM's.
        specs: of its KV cache groups.
    """

    def __init__(self, scheduler: Any, specs: Sequence[KVCacheSpec]) -> None:
        self.scheduler = scheduler
        self.is_async = bool(scheduler.scheduler_config.async_scheduling)
        self.books = Books()
        self.worker = FakeWorker(
            specs, self.books.salt_of, scheduler.num_spec_tokens, self.is_async
        )
        self.in_flight: deque[tuple[SchedulerOutput, ModelRunnerOutput]] = deque()
        self.num_steps = 0
        self.is_sound = True

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.has_requests() or self.in_flight)

    def step(self, throttle: bool = False, aborts: Iterable[str] = ()) -> None:
        """One step, with ``aborts`` coming in while the model is at work."""
        self.num_steps += 1
        self.is_sound = False
        if self.scheduler.has_requests():
            output = self.scheduler.schedule(throttle)
            self.in_flight.append((output, self.worker.execute(output)))
            has_run = output.total_num_scheduled_tokens > 0
            may_overlap = self.is_async and len(self.in_flight) < 2
            if may_overlap and (has_run or self.scheduler.has_requests()):
                return
        if not self.in_flight:
            return
        self.abort(aborts)
        self.books.take(self.scheduler.update_from_output(*self.in_flight.popleft()))
        if self.worker.num_drafts and not self.is_async:
            self.scheduler.update_draft_token_ids(self.worker.drafts())

    def abort(self, request_ids: Iterable[str] | None) -> None:
        aborted = self.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ABORTED)
        self.books.aborted(request.request_id for request in aborted)

    def close(self, request_id: str, farewell: Request) -> None:
        """End a streaming session, as its client does."""
        self.books.accounts[request_id].close()
        self.scheduler.add_request(farewell)

    def reset_prefix_cache(self, reset_running: bool) -> None:
        try:
            self.scheduler.reset_prefix_cache(reset_running_requests=reset_running)
        except RuntimeError as error:
            # vLLM's answer where sessions or transfers hold blocks.
            assert "Failed to reset KV cache" in str(error)
            assert self.num_blocks_held()

    def drain(self) -> None:
        """No more arrivals: everything ends, in no more steps than all would take alone."""
        self.scheduler.set_pause_state(PauseState.UNPAUSED)
        most = self.num_steps + self._steps_at_most()
        seen, seen_at = -1, self.num_steps
        while self.has_work:
            self.step()
            self.check()
            if self.books.num_deliveries() != seen:
                seen, seen_at = self.books.num_deliveries(), self.num_steps
            assert self.num_steps - seen_at < PATIENCE, f"stuck: {self._left()}"
            assert self.num_steps < most, f"{self._left()} left after all those steps"
        self.check_empty()

    def _steps_at_most(self) -> int:
        accounts = self.books.open().values()
        tokens = sum(
            len(account.context)
            + len(account.right)
            + sum(len(prompt) + max_tokens for prompt, max_tokens in account.turns)
            for account in accounts
        )
        return 50 + 4 * tokens

    def _left(self) -> dict[str, str]:
        return {name: r.status.name for name, r in self.scheduler.requests.items()}

    def num_blocks_held(self) -> int:
        pool = pool_of(self.scheduler)
        return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())

    def check(self) -> None:
        """What must hold at any time."""
        self.is_sound = False
        scheduler = self.scheduler
        waiting, holding = list(scheduler.waiting), list(scheduler.kv_holding_waiting)
        assert len(waiting) == len(scheduler.waiting), "the queue miscounts"
        places = Counter(r.request_id for r in (*scheduler.running, *waiting, *holding))
        assert all(count == 1 for count in places.values()), f"in two places: {places}"
        leaving = {name for name, r in scheduler.requests.items() if r.is_finished()}
        assert places.keys() | leaving == scheduler.requests.keys(), "a request is nowhere"
        assert self.books.open().keys() == places.keys(), "books and scheduler disagree"
        self._check_ref_counts()
        scheduler.waiting.check_integrity()
        scheduler.prefix_queue.check_integrity()
        pool = pool_of(scheduler)
        pool.check_integrity()
        self._check_needed(pool)
        if scheduler.admission is not None:
            known, right = scheduler.admission.running.ids, self._admitted()
            wrong = {name: scheduler.requests.get(name) for name in known ^ right}
            details = {n: r and (r.status.name, r.num_computed_tokens) for n, r in wrong.items()}
            assert not wrong, f"admission is wrong about {details}"
            scheduler.admission.check_integrity(right)
        self.is_sound = True

    def _check_needed(self, pool: Any) -> None:
        """Exactly those blocks are kept that somebody who waits can use.

        With a step in flight, tokens come for a request that has just been preempted; the block
        that they may fill is known when the request is looked at next.
        """
        kept = pool.needed_free_blocks()
        num_late = 1 + self.scheduler.num_spec_tokens if self.is_async else 0
        assert kept <= needed_blocks(pool, waiting_hashes(self.scheduler)), "kept for nobody"
        needed = needed_blocks(pool, waiting_hashes(self.scheduler, num_late))
        assert kept >= needed, "somebody's block is not kept"

    def _admitted(self) -> set[str]:
        """Who has been let in: those who run, and others that hold blocks."""
        manager = self.scheduler.kv_cache_manager
        names = {n for n in self.scheduler.requests if any(manager.get_blocks(n).blocks)}
        return names | {r.request_id for r in self.scheduler.running}

    def _check_ref_counts(self) -> None:
        scheduler = self.scheduler
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        counts = Counter(
            block.block_id
            for manager in managers
            for blocks in manager.req_to_blocks.values()
            for block in blocks
        )
        counts.update(b.block_id for _, blocks in scheduler.deferred_frees for b in blocks)
        for block in pool_of(scheduler).blocks:
            if not block.is_null:
                assert block.ref_cnt == counts[block.block_id], f"{block} has {counts}"

    def check_empty(self) -> None:
        """What must hold when everything has ended."""
        scheduler, pool = self.scheduler, pool_of(self.scheduler)
        self.books.check_all_have_ended()
        assert not scheduler.requests and not self.num_blocks_held(), "something is left"
        assert not scheduler.deferred_waiting and not scheduler.prefix_queue.levels
        assert not pool._demand.filed and not self.worker.transfers
        for line in scheduler.prefix_queue.group_queues:
            assert not line and not line._waiting_since
        for forest in scheduler.prefix_queue.forests:
            assert not forest and not forest.root.children, "a forest keeps a node"
        assert scheduler.prefix_queue.num_interactive == 0 and not len(scheduler.waiting)
        admission = scheduler.admission
        if admission is not None:
            assert not admission.num_running and not len(admission.running.memory)
            assert admission.running.memory.held_with() == 0 == admission.running.num_hinted
            assert (
                not admission.running.num_guessed and not admission.running.memory._runs.num_units
            )
            assert admission.counters.num_ended <= len(self.books.accounts) * 4
