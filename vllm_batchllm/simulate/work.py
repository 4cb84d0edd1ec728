# SPDX-License-Identifier: Apache-2.0
"""From what a scheduler has put into a step to the work that this is."""

from __future__ import annotations

from typing import Any

from vllm_batchllm.simulate.cost_model import StepWork
from vllm_batchllm.simulate.shared_kv import SharedKVMeter


def held_kv_tokens(scheduler: Any) -> int:
    """Tokens in the KV blocks that requests of a scheduler hold; shared ones count once."""
    pool = scheduler.kv_cache_manager.block_pool
    return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()) * int(scheduler.block_size)


class WorkMeter:
    """Follows how far each request has come, from the outputs of `schedule()` alone.

    sharing: also counts what a kernel that reads shared KV once would read.
    """

    def __init__(self, sharing: SharedKVMeter | None = None) -> None:
        self._computed: dict[str, int] = {}
        self._sharing = sharing

    def work_of(self, output: Any, num_sampled: int, held_kv_tokens: int) -> StepWork:
        """The work of one `SchedulerOutput`. O(requests in the step)."""
        computed = self._computed
        for new in output.scheduled_new_reqs:
            computed[new.req_id] = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        if cached.resumed_req_ids:
            starts = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            computed.update((name, starts[name]) for name in cached.resumed_req_ids)
            if self._sharing is not None:
                self._sharing.forget(cached.resumed_req_ids)
        decodes: list[str] = []
        pairs = prefill_kv = decode_kv = 0
        for name, count in output.num_scheduled_tokens.items():
            start = computed[name]
            end = computed[name] = start + count
            if count == 1:
                decode_kv += end
                decodes.append(name)
            else:  # query i of the chunk attends to start + i + 1 keys
                pairs += count * start + count * (count + 1) // 2
                prefill_kv += end
        return StepWork(
            num_tokens=output.total_num_scheduled_tokens,
            num_requests=len(output.num_scheduled_tokens),
            num_sampled=num_sampled,
            prefill_pairs=pairs,
            prefill_kv_tokens=prefill_kv,
            decode_kv_tokens=decode_kv,
            held_kv_tokens=held_kv_tokens,
            shared=None if self._sharing is None else self._sharing.work_of(decodes, computed),
        )

    def forget(self, request_ids: Any) -> None:
        """These have ended."""
        for name in request_ids:
            self._computed.pop(name, None)
        if self._sharing is not None:
            self._sharing.forget(request_ids)
