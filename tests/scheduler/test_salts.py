# SPDX-License-Identifier: Apache-2.0
"""Two cache salts never share: no block, no group, no learned length of a group."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import STOP_TOKEN, make_scheduler, make_vllm_config, model_output
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

from vllm_batchllm.scheduler.kv_cache_manager import candidate_of
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

BLOCK_SIZE = 16
SALTS = (None, "tenant a", "tenant b")

wanted = st.lists(
    st.tuples(st.sampled_from(SALTS), st.integers(1, 2), st.sampled_from([40, 70]), st.booleans()),
    min_size=2,
    max_size=14,
)


def salted(number: int, salt: str | None, prompt: list[int]) -> Request:
    init_none_hash(sha256)
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    params.update_from_generation_config({}, STOP_TOKEN)
    return Request(
        request_id=str(number),
        prompt_token_ids=prompt,
        sampling_params=params,
        pooling_params=None,
        arrival_time=float(number),
        cache_salt=salt,
        block_hasher=get_request_block_hasher(BLOCK_SIZE, sha256),
    )


class Watch:
    """Who computed each block last, and how many blocks were hits."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.salt_of: dict[int, str | None] = {}
        self.num_hits = 0

    def step(self) -> None:
        """One step; every block of a request must have been computed under its own salt."""
        scheduler = self.scheduler
        output = scheduler.schedule()
        cached = output.scheduled_cached_reqs
        starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        starts |= {
            request_id: computed
            for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True)
            if request_id in cached.resumed_req_ids
        }
        for request in scheduler.running:
            (ids,) = scheduler.kv_cache_manager.get_block_ids(request.request_id)
            num_hits = starts.get(request.request_id, 0) // BLOCK_SIZE
            self.num_hits += num_hits
            is_new = request.request_id in starts
            for index, block_id in enumerate(ids):
                if index >= num_hits and (is_new or block_id not in self.mine(request)):
                    self.salt_of[block_id] = request.cache_salt
                assert self.salt_of[block_id] == request.cache_salt, "a block of another tenant"
            request.__dict__["seen_blocks"] = set(ids)
        self.check_trees()
        scheduler.update_from_output(output, model_output(scheduler, output))

    def mine(self, request: Request) -> set[int]:
        """The blocks that ``request`` had in the step before."""
        return request.__dict__.get("seen_blocks", set())

    def check_trees(self) -> None:
        """No group of waiting requests holds two salts."""
        for forest in self.scheduler.waiting.forests:
            for tree in forest.ordered_children(forest.root):
                assert len({request.cache_salt for request in forest.walk(tree)}) == 1


@pytest.mark.parametrize("num_blocks", [14, 200], ids=["short of memory", "room for all"])
def test_no_block_is_ever_used_under_two_salts(llama, num_blocks) -> None:
    config = make_vllm_config(
        llama, num_blocks=num_blocks, max_num_seqs=4, options={"admission": "stock"}
    )
    num_hits = 0

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(wanted)
    def run(requests: list[tuple[str | None, int, int, bool]]) -> None:
        nonlocal num_hits
        scheduler = make_scheduler(BatchLLMScheduler, config)
        watch = Watch(scheduler)
        for number, (salt, document, length, steps_between) in enumerate(requests):
            scheduler.add_request(salted(number, salt, [document] * length))
            if steps_between:
                watch.step()
        while scheduler.has_unfinished_requests():
            watch.step()
        num_hits += watch.num_hits

    run()
    assert num_hits > 20, "nothing was shared at all, so nothing was shown"


def test_equal_prompts_under_two_salts_have_no_hash_and_no_group_in_common(llama) -> None:
    prompt = list(range(10, 90))
    mine, yours, nobodys = (salted(n, salt, prompt) for n, salt in enumerate(["a", "b", None]))
    again = salted(3, "a", prompt)
    assert mine.block_hashes == again.block_hashes
    for one, other in ((mine, yours), (mine, nobodys), (yours, nobodys)):
        assert not set(one.block_hashes) & set(other.block_hashes)
        hashes = (set(candidate_of(request, 1000, 16).hashes) for request in (one, other))
        assert not set.intersection(*hashes)


def test_a_waiting_request_does_not_keep_the_blocks_of_another_salt(llama) -> None:
    config = make_vllm_config(llama, num_blocks=100, max_num_seqs=4)
    scheduler = make_scheduler(BatchLLMScheduler, config)
    watch = Watch(scheduler)
    prompt = list(range(10, 90))
    scheduler.add_request(salted(0, "a", prompt))
    while scheduler.has_unfinished_requests():
        watch.step()
    kept = scheduler.kv_cache_manager.block_pool.needed_free_blocks
    scheduler.add_request(salted(1, "b", prompt))
    assert not kept(), "what tenant a left is kept for tenant b"
    scheduler.add_request(salted(2, "a", prompt))
    assert len(kept()) == 80 // BLOCK_SIZE, "what tenant a left is not kept for tenant a"
