# SPDX-License-Identifier: Apache-2.0
"""Makes the queue of one priority: one group queue, or one for each adapter where adapters are limited."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from vllm_batchllm.ordering.adapter_queue import AdapterGroupQueue, AdapterSlots
from vllm_batchllm.ordering.group_queue import GroupQueue, WaitingRequest
from vllm_batchllm.ordering.planned_group_queue import queue_class_for
from vllm_batchllm.ordering.policies import GroupOrder
from vllm_batchllm.ordering.priorities import WaitingQueue

R = TypeVar("R", bound=WaitingRequest)


def queue_maker(
    order: GroupOrder,
    block_size: int,
    max_wait_s: float | None,
    clock: Callable[[], float],
    expect: Callable[[R], int] | None,
    slots: AdapterSlots | None,
    adapter_of: Callable[[R], int],
) -> Callable[[], WaitingQueue[R]]:
    """What makes the queue of one priority; arguments as :class:`GroupQueue` and :class:`AdapterGroupQueue` take them."""

    def of_one_adapter() -> GroupQueue[R]:
        group_queue: GroupQueue[R] = queue_class_for(order)(order, block_size, max_wait_s, clock)
        if expect is not None:
            group_queue.expect = expect
        return group_queue

    if slots is None:
        return of_one_adapter
    by_clock = max_wait_s is not None
    return partial(AdapterGroupQueue, slots, adapter_of, of_one_adapter, by_clock)
