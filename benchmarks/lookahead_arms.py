# SPDX-License-Identifier: Apache-2.0
"""What is compared under limited look-ahead, and one run of it: real schedulers, no model."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fake_engine import (
    admitted_ids,
    make_requests,
    make_scheduler,
    make_vllm_config,
    model_output,
)
from pooled import LruScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.admission.environment import Clock
from vllm_batchllm.ordering.group_queue import GroupQueue
from vllm_batchllm.ordering.policies import DepthFirst
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler


class ArrivalLine(GroupQueue[Request]):
    """Order of arrival; the forest only tells the pool who waits."""

    def __init__(self, block_size: int) -> None:
        super().__init__(DepthFirst(), block_size)
        self._arrived: dict[Request, None] = {}

    def add(self, request: Request, rank: Any) -> None:
        super().add(request, rank)
        self._arrived[request] = None

    def peek(self) -> Request:
        returned = self._returned()
        if returned is not None:
            return returned[1]
        return next(iter(self._arrived))

    def remove(self, request: Request, *, admitted: bool = False) -> None:
        super().remove(request, admitted=admitted)
        self._arrived.pop(request, None)


class ArrivalScheduler(BatchLLMScheduler):
    """Our pool under vLLM's order."""

    def _make_queue(self, clock: Clock) -> PrefixGroupQueue:
        queue = super()._make_queue(clock)
        queue._new_queue = partial(ArrivalLine, self.hash_block_size)
        return queue


@dataclass(frozen=True)
class Arm:
    """A scheduler and the order it is given; None for one that takes no options of ours."""

    name: str
    scheduler: type[Scheduler]
    order: str | None


def arms_for(orders: Sequence[str]) -> list[Arm]:
    """vLLM's scheduler, our pool alone, and for each order our queue without and with it."""
    arms = [Arm("arrival, LRU", Scheduler, None), Arm("arrival, our pool", ArrivalScheduler, "dfs")]
    for order in orders:
        arms += [
            Arm(f"{order}, LRU", LruScheduler, order),
            Arm(f"{order}, our pool", BatchLLMScheduler, order),
        ]
    return arms


@dataclass(frozen=True)
class Workload:
    """Prompts and outputs in tokens, and the memory they are served in."""

    prompts: list[list[int]]
    outputs: list[int]
    block_size: int
    num_blocks: int
    max_num_batched_tokens: int

    @property
    def num_blocks_needed(self) -> int:
        """KV blocks of the longest request."""
        lengths = zip(self.prompts, self.outputs, strict=True)
        return -(-max(len(prompt) + output for prompt, output in lengths) // self.block_size)


@dataclass(frozen=True)
class Outcome:
    """What a run computed, and how. Shares are of all prompt tokens.

    saved_share: found in the cache when first admitted. net_saved_share: the same, less what was
    computed again after preemptions. num_needed_evicted: needed blocks given up; None where the
    pool does not know who needs what. longest_overtaken: the most places that a request was
    admitted behind its place in the order of arrival.
    """

    saved_share: float
    net_saved_share: float
    num_preemptions: int
    num_steps: int
    num_needed_evicted: int | None
    longest_overtaken: int


def run(
    arm: Arm,
    model: str,
    work: Workload,
    max_num_seqs: int,
    max_waiting: int | None,
) -> Outcome:
    """Serve ``work``; at most ``max_waiting`` requests wait at any time (None: all at once)."""
    scheduler = make_scheduler(
        arm.scheduler,
        make_vllm_config(
            model,
            num_blocks=work.num_blocks + 1,  # vLLM keeps one for itself
            block_size=work.block_size,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=work.max_num_batched_tokens,
            options=None if arm.order is None else {"order": arm.order},
        ),
    )
    todo = deque(_requests(work))
    tally = _Tally()
    while todo or scheduler.has_unfinished_requests():
        while todo and (max_waiting is None or len(scheduler.waiting) < max_waiting):
            scheduler.add_request(todo.popleft())
        output = scheduler.schedule()
        tally.count(output)
        scheduler.update_from_output(output, model_output(scheduler, output))
    return tally.outcome(work, scheduler)


def _requests(work: Workload) -> list[Request]:
    requests = make_requests(work.prompts, block_size=work.block_size)
    for request, num_tokens in zip(requests, work.outputs, strict=True):
        request.max_tokens = num_tokens
        request.sampling_params.max_tokens = num_tokens
    return requests


class _Tally:
    """Counters over the steps of one run."""

    def __init__(self) -> None:
        self._num_hit_tokens = self._num_scheduled_tokens = 0
        self._num_preemptions = self._num_steps = 0
        self._order: dict[str, None] = {}

    def count(self, output: Any) -> None:
        self._num_steps += 1
        self._num_scheduled_tokens += output.total_num_scheduled_tokens
        self._num_preemptions += len(output.preempted_req_ids or ())
        self._num_hit_tokens += sum(new.num_computed_tokens for new in output.scheduled_new_reqs)
        self._order.update(dict.fromkeys(admitted_ids(output)))

    def outcome(self, work: Workload, scheduler: Any) -> Outcome:
        num_prompt_tokens = sum(map(len, work.prompts))
        # The last output token is never an input.
        num_tokens = num_prompt_tokens + sum(work.outputs) - len(work.outputs)
        return Outcome(
            saved_share=self._num_hit_tokens / num_prompt_tokens,
            net_saved_share=(num_tokens - self._num_scheduled_tokens) / num_prompt_tokens,
            num_preemptions=self._num_preemptions,
            num_steps=self._num_steps,
            num_needed_evicted=_num_needed_evicted(scheduler),
            longest_overtaken=max(at - int(name) for at, name in enumerate(self._order)),
        )


def _num_needed_evicted(scheduler: Any) -> int | None:
    """None where the pool is not told who waits."""
    if getattr(scheduler.waiting, "_pool", None) is None:
        return None
    return int(scheduler.kv_cache_manager.block_pool.num_needed_evicted)
