# SPDX-License-Identifier: Apache-2.0
"""What PrefixAwareBlockPool keeps, lets go, and gives up, one promise at a time."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import make_requests, make_vllm_config, model_output, run_to_end
from pooled import (
    BLOCK_SIZE,
    KV_GROUPS,
    BlindScheduler,
    LruScheduler,
    full,
    make,
    needed_blocks,
    pool_of,
    waiting_hashes,
)
from vllm.v1.core import kv_cache_coordinator
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.request import Request, RequestStatus

from vllm_batchllm.kv_cache.block_pool import PrefixAwareBlockPool, installed_block_pool
from vllm_batchllm.prefix.forest import PrefixForest
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler


def build(model: str, cls: Any = BatchLLMScheduler, groups: str = "full", **config: Any) -> Any:
    defaults = {
        "num_blocks": 40,
        "block_size": BLOCK_SIZE,
        "max_num_seqs": 4,
        "options": {"admission": "stock"},  # so that memory is short
    }
    return make(cls, make_vllm_config(model, **{**defaults, **config}), KV_GROUPS[groups])


def requests(prompts: list[list[int]], first: int = 0, **args: Any) -> list[Request]:
    made = make_requests(prompts, block_size=BLOCK_SIZE, **args)
    for number, request in enumerate(made, first):
        request.request_id = str(number)
    return made


def serve(scheduler: Any, prompts: list[list[int]], first: int = 1000, **args: Any) -> None:
    """Run ``prompts`` one by one; they leave their blocks in the cache."""
    for number, prompt in enumerate(prompts, first):
        scheduler.add_request(*requests([prompt], number, **args))
        run_to_end(scheduler)


def wait(scheduler: Any, prompts: list[list[int]], **args: Any) -> list[Request]:
    """Queue ``prompts`` without a step."""
    made = requests(prompts, **args)
    for request in made:
        scheduler.add_request(request)
    return made


def cached_ids(scheduler: Any, request: Request, group: int = 0) -> list[int | None]:
    """The block that a look-up of each hash of ``request`` finds."""
    cache = pool_of(scheduler).cached_block_hash_to_block
    keys = [make_block_hash_with_group_id(h, group) for h in request.block_hashes]
    blocks = [cache.get_one_block(key) for key in keys]
    return [None if block is None else block.block_id for block in blocks]


def free_ids(scheduler: Any) -> list[int]:
    return [b.block_id for b in pool_of(scheduler).free_block_queue.get_all_free_blocks()]


def test_an_arrival_has_its_prefix_kept_and_its_abort_puts_everything_back(llama) -> None:
    scheduler = build(llama)
    serve(scheduler, [[1] * 20, [2] * 20, [3] * 20])
    before = free_ids(scheduler)
    (request,) = wait(scheduler, [[1] * 20 + [9]])
    prefix = cached_ids(scheduler, request)
    assert None not in prefix
    rest = [block_id for block_id in before if block_id not in prefix]
    assert free_ids(scheduler) == rest + prefix[::-1]
    pool_of(scheduler).check_integrity()
    scheduler.finish_requests("0", RequestStatus.FINISHED_ABORTED)
    assert free_ids(scheduler) == before
    pool_of(scheduler).check_integrity()


def test_the_group_served_last_is_given_up_first_tail_before_head(llama) -> None:
    scheduler = build(llama)
    serve(scheduler, [[1] * 12, [2] * 12, [3] * 12])
    waiting = wait(scheduler, [[2] * 12 + [9], [1] * 12 + [9], [3] * 8 + [9], [2] * 8 + [9]])
    (second, first, third, _) = (cached_ids(scheduler, request) for request in waiting)
    kept = [*third[::-1], *first[::-1], *second[::-1]]
    assert free_ids(scheduler)[-len(kept) :] == kept
    pool = pool_of(scheduler)
    num_unneeded = pool.get_num_free_blocks() - len(kept)
    pool.get_new_blocks(num_unneeded)
    assert pool.num_needed_evicted == 0
    assert pool.num_unneeded_evicted == 1, "the last block of [3] * 12"
    pool.get_new_blocks(3)
    assert pool.num_needed_evicted == 3
    assert cached_ids(scheduler, waiting[2]) == [None, None]
    assert cached_ids(scheduler, waiting[1]) == [*first[:2], None]
    pool.check_integrity()


def test_a_preempted_request_finds_its_blocks_again(llama) -> None:
    """Two requests outgrow the cache; beside them lies garbage that is younger."""
    prompts = [[1] * 40, [2] * 40]
    computed = {}
    for cls in (BlindScheduler, BatchLLMScheduler):
        scheduler = build(llama, cls, num_blocks=31)
        wait(scheduler, prompts, max_tokens=40)
        num_tokens, num_preempted = 0, 0
        while scheduler.has_unfinished_requests():
            output = scheduler.schedule()
            num_tokens += output.total_num_scheduled_tokens
            preempted = [scheduler.requests[name] for name in output.preempted_req_ids or ()]
            num_preempted += len(preempted)
            if cls is BatchLLMScheduler and preempted:
                (request,) = preempted
                assert request in scheduler.waiting
                filed = pool_of(scheduler).needed_free_blocks()
                kept = [b for b in cached_ids(scheduler, request) if b is not None]
                assert kept and set(kept) == filed
            scheduler.update_from_output(output, model_output(scheduler, output))
        assert num_preempted == 1
        computed[cls] = num_tokens
    assert computed[BatchLLMScheduler] <= computed[BlindScheduler]


def test_garbage_goes_before_the_blocks_of_a_preempted_request(llama) -> None:
    scheduler = build(llama)
    (request,) = wait(scheduler, [[1] * 40], max_tokens=20)
    for _ in range(3):
        output = scheduler.schedule()
        scheduler.update_from_output(output, model_output(scheduler, output))
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0)
    kept = cached_ids(scheduler, request)
    assert len(kept) == 10 and None not in kept
    assert free_ids(scheduler)[-10:] == kept[::-1]
    output = scheduler.schedule()
    assert output.num_scheduled_tokens["0"] == request.num_tokens - 40, "it found them all again"
    pool_of(scheduler).check_integrity()


def test_what_waits_is_hit_more_often_than_with_lru(llama) -> None:
    """A queue of twelve, documents that come back, a cache for a third of them."""
    rng = random.Random(1)
    prompts = [[n % 12 + 1] * 24 + [rng.randrange(99) for _ in range(5)] for n in range(240)]
    rng.shuffle(prompts)
    computed = {}
    for cls in (LruScheduler, BatchLLMScheduler):
        scheduler = build(llama, cls, num_blocks=30, max_num_seqs=2)
        todo = requests(prompts)
        while todo or scheduler.has_unfinished_requests():
            while todo and len(scheduler.waiting) < 12:
                scheduler.add_request(todo.pop(0))
            output = scheduler.schedule()
            scheduler.update_from_output(output, model_output(scheduler, output))
        computed[cls] = scheduler.batchllm_snapshot()["computed_prompt_tokens"]
    assert computed[BatchLLMScheduler] < 0.95 * computed[LruScheduler]


def test_only_the_copy_that_would_be_hit_is_kept(llama) -> None:
    """The second [1] * 8 must compute its last token, and with it a second block of its own."""
    scheduler = build(llama)
    serve(scheduler, [[1] * 8, [1] * 8], max_tokens=1)
    (request,) = wait(scheduler, [[1] * 9])
    pool = pool_of(scheduler)
    kept = cached_ids(scheduler, request)
    assert pool.needed_free_blocks() == set(kept)
    copies = [b.block_id for b in pool.blocks if b.block_hash == pool.blocks[kept[1]].block_hash]
    assert len(copies) == 2
    pool.evict_blocks({kept[1]})
    (other,) = set(copies) - {kept[1]}
    assert cached_ids(scheduler, request) == [kept[0], other]
    assert pool.needed_free_blocks() == {kept[0], other}
    pool.check_integrity()


def test_a_window_is_kept_though_the_blocks_before_it_are_gone(llama) -> None:
    scheduler = build(llama, groups="full + sliding window", max_num_batched_tokens=8)
    serve(scheduler, [[1] * 40])
    pool = pool_of(scheduler)
    (probe,) = requests([[1] * 41])
    window = [block_id for block_id in cached_ids(scheduler, probe, group=1) if block_id]
    pool.evict_blocks(set(window[:-2]))
    (request,) = wait(scheduler, [[1] * 41])
    assert cached_ids(scheduler, request, group=1)[0] is None
    assert set(window[-2:]) <= pool.needed_free_blocks()
    assert pool.needed_free_blocks() == needed_blocks(pool, waiting_hashes(scheduler))
    assert scheduler.schedule().num_scheduled_tokens["0"] == 1, "40 of 41 tokens are hits"


def test_a_reset_forgets_what_was_kept(llama) -> None:
    scheduler, stock = build(llama), build(llama, BlindScheduler)
    for arm in (scheduler, stock):
        serve(arm, [[1] * 20, [2] * 20])
        wait(arm, [[1] * 21])
        assert arm.reset_prefix_cache()
    assert not pool_of(scheduler).needed_free_blocks()
    assert free_ids(scheduler) == free_ids(stock)
    pool_of(scheduler).check_integrity()
    assert run_to_end(scheduler) == ["0"]


def test_a_reset_that_fails_changes_nothing(llama) -> None:
    scheduler = build(llama)
    serve(scheduler, [[1] * 20])
    wait(scheduler, [[2] * 20], max_tokens=9)
    scheduler.schedule()
    (request,) = requests([[1] * 21], first=7)
    scheduler.add_request(request)
    kept = pool_of(scheduler).needed_free_blocks()
    assert kept and not scheduler.reset_prefix_cache()
    assert pool_of(scheduler).needed_free_blocks() == kept


class BarePool:
    """A pool of our kind without a scheduler; one request of four hashes, blocks of two."""

    def __init__(self) -> None:
        self.pool: Any = PrefixAwareBlockPool(8, True, hash_block_size=4)
        self.forest: PrefixForest[str] = PrefixForest(4)
        self.pool.watch(self.forest)
        self.request: Any = SimpleNamespace(block_hashes=[bytes([n]) * 32 for n in range(4)])
        self.block, self.other = self.pool.get_new_blocks(2)

    def someone_waits_for(self, num_hashes: int) -> None:
        self.forest.insert("someone", self.request.block_hashes[:num_hashes], 0)

    def cache(self, num_tokens: int) -> None:
        if num_tokens % 8:
            self.pool.cache_partial_block(self.request, self.block, num_tokens, 0, 8)
        else:
            self.pool.cache_full_blocks(self.request, [self.block], 0, 1, 8, 0)

    def is_kept(self) -> bool:
        self.pool.free_blocks([self.block])
        self.pool.check_integrity()
        return self.block.block_id in self.pool.needed_free_blocks()


@pytest.mark.parametrize(
    ("boundaries", "num_waiting_hashes", "kept"),
    [
        ([4], 1, True),
        ([8], 1, False),
        ([8], 2, True),
        ([4, 8], 1, False),  # a full block has taken the place of the partial one
        ([8, 4], 1, True),  # the same block is found under both prefixes
        ([8, 4], 2, True),
    ],
)
def test_a_block_that_ends_several_prefixes_is_needed_for_the_shortest(
    boundaries, num_waiting_hashes, kept
) -> None:
    bare = BarePool()
    for num_tokens in boundaries:
        bare.cache(num_tokens)
    bare.someone_waits_for(num_waiting_hashes)
    assert bare.is_kept() is kept


def test_hashes_that_move_to_another_block_take_its_future_along() -> None:
    bare = BarePool()
    bare.someone_waits_for(2)
    bare.cache(8)
    bare.pool.move_block_hashes(bare.block, bare.other)
    assert not bare.is_kept()
    bare.block = bare.other
    assert bare.is_kept()


def test_a_hash_list_that_was_cut_is_not_trusted() -> None:
    """A streaming session drops its last hashes and goes on with others."""
    bare = BarePool()
    bare.cache(8)
    hashes = bare.request.block_hashes
    bare.forest.insert("someone", list(hashes), 0)
    del hashes[1:]
    assert not bare.is_kept()
    hashes += [b"x" * 32] * 3
    bare.pool.touch([bare.block])
    assert not bare.is_kept()


def test_the_substitution_ends_with_the_block_it_is_made_for(llama) -> None:
    with pytest.raises(RuntimeError, match="built badly"), installed_block_pool():
        assert kv_cache_coordinator.BlockPool is PrefixAwareBlockPool
        raise RuntimeError("built badly")
    assert kv_cache_coordinator.BlockPool is BlockPool
    assert type(pool_of(build(llama))) is PrefixAwareBlockPool
    assert kv_cache_coordinator.BlockPool is BlockPool


def test_prefix_caching_off_is_vllms_pool_in_all_but_name(llama) -> None:
    scheduler = make(
        BlindScheduler, make_vllm_config(llama, enable_prefix_caching=False), [full(16)]
    )
    for request in make_requests([[1] * 40, [1] * 40]):
        scheduler.add_request(request)
    assert run_to_end(scheduler) == ["0", "1"]
    pool_of(scheduler).check_integrity()
    assert pool_of(scheduler).num_unneeded_evicted == 0
