# SPDX-License-Identifier: Apache-2.0
"""SGLang's orders on vLLM's scheduler, against plain sorts and plain recursion."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated import batch_of

from vllm_batchllm.simulate.ring import RingSpec, build_scheduler, make_requests, sample
from vllm_batchllm.simulate.sglang import (
    LPM_FALLBACK,
    DfsWeightScheduler,
    LongestPrefixScheduler,
)

BLOCK_SIZE = 16
Path = tuple[int, ...]
paths = st.lists(st.lists(st.integers(0, 2), max_size=5).map(tuple), min_size=1, max_size=20)


def waiting(request_paths: list[Path]) -> list[Any]:
    """Stand-ins of requests: one symbol a block, hashes are the path so far."""
    return [
        SimpleNamespace(request_id=str(n), path=path,
                        block_hashes=[path[: end + 1] for end in range(len(path))])
        for n, path in enumerate(request_paths)
    ]  # fmt: skip


def policy(cls: Any, cached: set[Path]) -> Any:
    """The policy on a cache that holds these prefixes and all that are shorter."""
    held = {path[:end] for path in cached for end in range(1, len(path) + 1)}
    scheduler = object.__new__(cls)
    scheduler.block_size = BLOCK_SIZE
    pool = SimpleNamespace(get_cached_block=lambda key, groups: [key] if key in held else None)
    scheduler.kv_cache_manager = SimpleNamespace(block_pool=pool)
    scheduler.held = held
    return scheduler


def hit(scheduler: Any, request: Any) -> Path:
    """The longest cached prefix, looked for from the start."""
    end = 0
    while end < len(request.path) and request.path[: end + 1] in scheduler.held:
        end += 1
    return request.path[:end]


@given(paths, st.sets(st.lists(st.integers(0, 2), max_size=5).map(tuple)))
def test_the_cached_part_is_found_by_bisection(request_paths: list[Path], cached: Any) -> None:
    scheduler = policy(LongestPrefixScheduler, cached)
    for request in waiting(request_paths):
        assert scheduler.num_cached(request) == len(hit(scheduler, request))


@given(paths, st.sets(st.lists(st.integers(0, 2), max_size=5).map(tuple)))
def test_lpm_sorts_by_the_cached_prefix_and_defers_who_would_wait(
    request_paths: list[Path], cached: Any
) -> None:
    scheduler = policy(LongestPrefixScheduler, cached)
    requests = waiting(request_paths)
    first: list[Any] = []  # those that are not deferred
    deferred = []
    for request in requests:
        # 32 tokens are 2 blocks: no more cached, and as many shared with one that goes first.
        few = len(hit(scheduler, request)) <= 2 <= len(request.path)
        others = [o for o in first if len(hit(scheduler, o)) <= 2 <= len(o.path)]
        if few and any(o.path[:2] == request.path[:2] for o in others):
            deferred.append(request)
        else:
            first.append(request)
    expected = sorted(first, key=lambda request: -len(hit(scheduler, request))) + deferred
    assert [r.request_id for r in scheduler.arranged(requests)] == [r.request_id for r in expected]


@pytest.mark.parametrize(
    ("number", "falls_back"), [(LPM_FALLBACK, False), (LPM_FALLBACK + 1, True)]
)
def test_lpm_looks_at_no_prefixes_with_more_than_128_waiting(number: int, falls_back: bool) -> None:
    scheduler = policy(LongestPrefixScheduler, {(1, 1)})
    requests = waiting([(2,)] * (number - 1) + [(1, 1)])
    arranged = scheduler.arranged(requests)
    assert (arranged is requests) == falls_back
    assert (arranged[0] is requests[-1]) != falls_back


def dfs_order(scheduler: Any, requests: list[Any]) -> list[str]:
    """Depth first over the tree of hits, token by token, heaviest child first, own ones last."""
    hits = {request.request_id: hit(scheduler, request) for request in requests}
    nodes = {*hits.values(), ()}

    def weight(node: Path) -> int:
        return sum(path[: len(node)] == node for path in hits.values())

    def children(node: Path) -> list[Path]:
        below = [other for other in nodes if len(other) > len(node) and other[: len(node)] == node]
        return [o for o in below if not any(len(p) < len(o) and o[: len(p)] == p for p in below)]

    def visit(node: Path) -> list[str]:
        heaviest_first = sorted(children(node), key=lambda child: -weight(child))
        assert len({weight(child) for child in heaviest_first}) == len(heaviest_first), "a tie"
        order = [name for child in heaviest_first for name in visit(child)]
        return order + [name for name, path in hits.items() if path == node]

    return visit(())


@given(paths, st.sets(st.lists(st.integers(0, 2), max_size=5).map(tuple)))
def test_dfs_weight_is_depth_first_by_weight(request_paths: list[Path], cached: Any) -> None:
    scheduler = policy(DfsWeightScheduler, cached)
    requests = waiting(request_paths)
    arranged = [request.request_id for request in scheduler.arranged(requests)]
    assert sorted(arranged) == sorted(request.request_id for request in requests)
    try:
        expected = dfs_order(scheduler, requests)
    except AssertionError:  # equal weights: either may be first
        return
    assert arranged == expected


@pytest.mark.parametrize("cls", [LongestPrefixScheduler, DfsWeightScheduler])
def test_what_is_cached_goes_first_on_the_real_scheduler(cls: Any) -> None:
    shared, other = [5] * 64, [6] * 64
    prompts = [[*shared, 1], [*other, 2], [*shared, 3], [*other, 4], [*shared, 5]]
    scheduler = build_scheduler(cls, RingSpec(8, BLOCK_SIZE, 1, 512, 128))
    for request in make_requests(batch_of(prompts, [1] * 5), range(5), BLOCK_SIZE):
        scheduler.add_request(request)
    admitted = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        admitted += [new.req_id for new in output.scheduled_new_reqs]
        ends = dict.fromkeys(output.num_scheduled_tokens, 1)
        scheduler.update_from_output(output, sample(scheduler, output, ends))
    assert admitted[:3] == ["0", "2", "4"], "those that find the first one's prompt"
    assert sorted(admitted) == list("01234")
