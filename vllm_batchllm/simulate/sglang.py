# SPDX-License-Identifier: Apache-2.0
"""SGLang's two cache-aware orders as re-implementations on vLLM's scheduler.

Only the order of the waiting queue is SGLang's; admission, cache and batching are vLLM's. What
is written here follows the description of the policies, for comparison:

- ``lpm``: longest cached prefix first; with more than 128 requests waiting, first come, first
  served. Of requests that share a prefix which nobody has computed, one goes first and the rest
  after those who would not wait for it (deferral inside a batch).
- ``dfs-weight``: the cached prefixes form a tree; depth first, at every node first the child
  with most requests waiting below, and its own requests after those of all its children.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

LPM_FALLBACK = 128
"""Waiting requests above which ``lpm`` stops looking at prefixes."""
DEFER_TOKENS = 32
"""Tokens of a common prefix, and at most so many cached ones, for which ``lpm`` defers."""


class _CacheAwareScheduler(Scheduler):
    """vLLM's scheduler; before each step its waiting queue is put in order."""

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """vLLM's step. O(waiting · log blocks) before it."""
        if len(self.waiting) > 1 and len(self.running) < self.max_num_running_reqs:
            waiting = list(self.waiting)
            ordered = self.arranged(waiting)
            if ordered is not waiting:
                self.waiting.clear()
                self.waiting.extend(ordered)
        return super().schedule(throttle_prefills)

    def arranged(self, waiting: list[Request]) -> Sequence[Request]:
        """`waiting` in the order of the policy; the same object for no change."""
        raise NotImplementedError

    def num_cached(self, request: Request) -> int:
        """Leading blocks of `request` in the cache; found by bisection, as blocks are given up
        from the end of a prefix."""
        find: Callable[..., Any] = self.kv_cache_manager.block_pool.get_cached_block
        hashes = request.block_hashes
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high + 1) // 2
            if find(hashes[middle - 1], [0]):
                low = middle
            else:
                high = middle - 1
        return low


class LongestPrefixScheduler(_CacheAwareScheduler):
    """``lpm``."""

    def arranged(self, waiting: list[Request]) -> Sequence[Request]:
        """Longest cached prefix first, deferred requests last."""
        if len(waiting) > LPM_FALLBACK:
            return waiting
        defer_blocks = -(-DEFER_TOKENS // self.block_size)
        opened: set[bytes] = set()
        keys: dict[str, tuple[bool, int]] = {}
        for request in waiting:
            cached = self.num_cached(request)
            deferred = False
            if cached <= defer_blocks <= len(request.block_hashes):
                mark = request.block_hashes[defer_blocks - 1]
                deferred = mark in opened
                opened.add(mark)
            keys[request.request_id] = (deferred, 0 if deferred else -cached)
        return sorted(waiting, key=lambda request: keys[request.request_id])


class DfsWeightScheduler(_CacheAwareScheduler):
    """``dfs-weight``."""

    def arranged(self, waiting: list[Request]) -> Sequence[Request]:
        """Depth first over the cached prefixes, heavier children first, a node's requests last.

        A node is the cached prefix of some waiting request; its parent is the longest shorter
        one on the same path.
        """
        members: dict[bytes | None, list[Request]] = defaultdict(list)
        paths: dict[bytes, tuple[Sequence[bytes], int]] = {}
        for request in waiting:
            cached = self.num_cached(request)
            node = request.block_hashes[cached - 1] if cached else None
            members[node].append(request)
            if node is not None:
                paths[node] = (request.block_hashes, cached)
        children, weights = self._tree(members, paths)
        backwards: list[bytes | None] = []
        stack: list[bytes | None] = [None]
        while stack:
            node = stack.pop()
            backwards.append(node)
            below = sorted(children[node], key=lambda child: -weights[child])
            stack.extend(below)
        return [request for node in reversed(backwards) for request in members[node]]

    @staticmethod
    def _tree(
        members: dict[bytes | None, list[Request]],
        paths: dict[bytes, tuple[Sequence[bytes], int]],
    ) -> tuple[dict[bytes | None, list[bytes]], dict[bytes, int]]:
        children: dict[bytes | None, list[bytes]] = defaultdict(list)
        weights = {node: len(members[node]) for node in paths}
        for node, (hashes, cached) in sorted(paths.items(), key=lambda item: -item[1][1]):
            above = (hashes[at] for at in range(cached - 2, -1, -1))
            parent = next((one for one in above if one in paths), None)
            children[parent].append(node)
            if parent is not None:
                weights[parent] += weights[node]
        return children, weights


class AsyncLongestPrefixScheduler(LongestPrefixScheduler, AsyncScheduler):
    """The same with async scheduling."""


class AsyncDfsWeightScheduler(DfsWeightScheduler, AsyncScheduler):
    """The same with async scheduling."""
