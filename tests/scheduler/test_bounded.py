# SPDX-License-Identifier: Apache-2.0
"""A scheduler that lives long keeps nobody who has left, and nothing grows with those who came."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest
from fake_engine import make_requests, make_scheduler, make_vllm_config, model_output
from vllm.v1.request import Request, RequestStatus

from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler


def build(llama: str, **config: Any) -> Any:
    defaults: dict[str, Any] = {"num_blocks": 60, "max_num_seqs": 4}
    return make_scheduler(BatchLLMScheduler, make_vllm_config(llama, **{**defaults, **config}))


def arrivals(number: int, first: int, priorities: list[int] | None = None) -> list[Request]:
    """Requests over a few documents, some alone, some too short to have a hash."""
    draw = random.Random(first)
    prompts = [
        [draw.randrange(8)] * draw.choice([5, 40, 90]) + [100 + n % 700, 1, 2, 3] * 5
        for n in range(number)
    ]
    made = make_requests(prompts, max_tokens=30, priorities=priorities)
    for count, request in enumerate(made, first):
        request.request_id = str(count)
    return made


def step(scheduler: Any) -> None:
    output = scheduler.schedule()
    scheduler.update_from_output(output, model_output(scheduler, output))


def heap_entries(scheduler: Any) -> int:
    entries = 0
    for line in scheduler.waiting.group_queues:
        entries += len(line._requeued._heap) + len(line._unhashed._heap)
    for forest in scheduler.waiting.forests:
        nodes = [forest.root]
        for node in nodes:
            nodes.extend((node.children or {}).values())
            entries += len(node.heap or ())
    return entries


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("order", ["dfs", "short-first", "exact-groups"])
def test_a_scheduler_at_rest_keeps_no_request_that_has_left(llama, policy, order) -> None:
    scheduler = build(llama, policy=policy, options={"order": order})
    known: list[weakref.ref[Request]] = []
    for wave in range(3):
        made = arrivals(150, wave * 1000, [n % 7 for n in range(150)])
        known += [weakref.ref(request) for request in made]
        for request in made:
            scheduler.add_request(request)
        for _ in range(20):  # preemptions among them: 60 blocks are few
            step(scheduler)
        ids = [request.request_id for request in made if not request.is_finished()]
        assert ids, "all have ended already, and none is left to abort"
        del made, request
        scheduler.finish_requests(ids, RequestStatus.FINISHED_ABORTED)
        step(scheduler)
    queue, pool = scheduler.waiting, scheduler.kv_cache_manager.block_pool
    queue.check_integrity()
    pool.check_integrity()
    scheduler.admission.check_integrity(set())
    assert len(queue) == 0 and not scheduler.requests and not queue.levels
    assert heap_entries(scheduler) == 0
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    gc.collect()
    alive = [request.request_id for ref in known if (request := ref()) is not None]
    assert not alive, f"{len(alive)} of {len(known)} requests are still held"


def test_priorities_of_those_who_left_are_forgotten(llama) -> None:
    """Over HTTP a client chooses any whole number; one that stays in front must not keep all."""
    scheduler = build(llama, policy="priority")
    front = arrivals(1, 0, [-1])
    scheduler.add_request(*front)
    for number in range(1, 2000):
        (request,) = arrivals(1, number, [number])
        scheduler.add_request(request)
        assert scheduler.waiting.peek_request() is front[0]
        scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
    scheduler.waiting.check_integrity()
    assert len(scheduler.waiting._queues._priorities) <= 2 * 2 + 65
    assert list(scheduler.waiting) == front


def test_the_hashes_kept_for_cached_blocks_are_about_as_many_as_the_blocks(llama) -> None:
    """Hundreds of questions about one document: each leaves a block, and with it a hash list."""
    scheduler = build(llama, num_blocks=800, options={"admission": "stock"})
    document = [5] * 1600
    for number in range(200):
        (request,) = make_requests([[*document, *[100 + number] * 32]], max_tokens=2)
        request.request_id = str(number)
        scheduler.add_request(request)
        while scheduler.has_unfinished_requests():
            step(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    lists = {id(each.hashes): each.hashes for origins in pool._origins for each in origins}
    hashes = {id(each) for hashes in lists.values() for each in hashes}
    num_cached = sum(block.block_hash is not None for block in pool.blocks)
    assert len(lists) >= 200 and num_cached >= 500
    assert len(hashes) <= 2 * num_cached, "equal hashes are kept again and again"
    pool.check_integrity()
