# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV cache manager, which asks before it lets a waiting request in.

``Scheduler.schedule`` ends the admissions of a step when ``allocate_slots`` returns None for a
waiting request. That is the one place where the number of running requests can be decided
without copying any of it. The decision itself is that of the step's :class:`AdmissionStep`; this
file only turns vLLM's calls into its words.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, cast

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched import scheduler as scheduler_module
from vllm.v1.request import Request, RequestStatus

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.controller import AdmissionController
from vllm_batchllm.admission.hints import hint_from
from vllm_batchllm.admission.interactive_reserve import INTERACTIVE_PRIORITY
from vllm_batchllm.compat.patching import substituted
from vllm_batchllm.prefix.readable import marked_limit, readable_hashes

RUNNING = RequestStatus.RUNNING


class AdmissionControlledKVCacheManager(KVCacheManager):
    """vLLM's manager, with an admission that has a say in who starts.

    Requests that run, or that wait but hold blocks (a transfer that has ended, a streaming
    session), are never refused: they have been admitted. Without an admission it is vLLM's.

    Args:
        make_admission: builds the admission for so many KV blocks that requests can hold; None
            for a manager that is vLLM's.
        goes_first: whether a request may not be asked to wait, whatever is foreseen.
        *args, **kwargs: as vLLM's.
    """

    def __init__(
        self,
        *args: Any,
        make_admission: Callable[[int], AdmissionController] | None = None,
        goes_first: Callable[[Request], bool] = lambda request: False,
        **kwargs: Any,
    ) -> None:
        self.watermark_blocks: int
        super().__init__(*args, **kwargs)
        self._user_watermark: int = self.watermark_blocks
        self.admission = make_admission(self.num_usable_blocks) if make_admission else None
        self._goes_first = goes_first

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can hold, asked before any does: all that are free, but the watermark."""
        return int(self.block_pool.get_num_free_blocks()) - self._user_watermark

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        new_computed_blocks: KVCacheBlocks | None = None,
        num_lookahead_tokens: int = 0,
        *args: Any,
        **kwargs: Any,
    ) -> KVCacheBlocks | None:
        """vLLM's; None also where the admission refuses a request that would start."""
        if request.status is RUNNING and new_computed_blocks is None and not args and not kwargs:
            # Asked for every running request in every step, and nobody's business here: what is
            # passed on is written out, by position, since anything else costs several times as much.
            return KVCacheManager.allocate_slots(
                self,
                request,
                num_new_tokens,
                num_new_computed_tokens,
                None,
                num_lookahead_tokens,
            )
        allocate = partial(
            super().allocate_slots,
            request,
            num_new_tokens,
            num_new_computed_tokens,
            new_computed_blocks,
            num_lookahead_tokens,
            *args,
            **kwargs,
        )
        admission = self.admission
        if request.status is RUNNING or admission is None or request.request_id in admission:
            return allocate()
        step = admission.step
        candidate = candidate_of(request, self.max_model_len, self.block_pool.hash_block_size)
        anything_running = bool(kwargs.get("has_scheduled_reqs", True))
        if kwargs.get("num_external_computed_tokens"):
            candidate = replace(candidate, holds_elsewhere=True)
        if not self._goes_first(request) and not step.may_start(
            candidate, anything_running=anything_running
        ):
            return None
        # vLLM keeps these free for who starts beside others, as it would a watermark of the user's.
        self.watermark_blocks = self._user_watermark or step.num_kept_blocks(candidate)
        blocks = allocate()
        if blocks is None:
            step.no_memory()
        else:
            step.started(candidate)
        return blocks

    # Looking up: a request that wants log-probabilities from a start on may find what lies before it.

    def prefix_cache_lookup_enabled(self, request: Request) -> bool:
        """vLLM's; also for a request of whose prompt a part may come from the cache."""
        limit = marked_limit(request.sampling_params)
        if limit is None:
            return bool(super().prefix_cache_lookup_enabled(request))
        return bool(self.enable_caching) and limit > 0

    def get_computed_blocks(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> tuple[KVCacheBlocks, int, int]:
        """vLLM's; at most as many tokens as ``request`` may take from the cache."""
        limit = marked_limit(request.sampling_params)
        if limit is not None:
            request, args = _as_far_as_readable(request, limit), _within(limit, args)
        found: tuple[KVCacheBlocks, int, int] = super().get_computed_blocks(
            request, *args, **kwargs
        )
        return found

    def get_computed_blocks_for_connector(
        self, request: Request, *args: Any, **kwargs: Any
    ) -> tuple[KVCacheBlocks, int, int, bool]:
        """vLLM's; at most as many tokens as ``request`` may take from the cache."""
        limit = marked_limit(request.sampling_params)
        if limit is not None:
            request, args = _as_far_as_readable(request, limit), _within(limit, args)
        found: tuple[KVCacheBlocks, int, int, bool] = super().get_computed_blocks_for_connector(
            request, *args, **kwargs
        )
        return found

    def free(self, request: Request) -> None:
        """vLLM's; the request has left."""
        super().free(request)
        self._left(request)

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        """vLLM's; the request has left, its blocks are given back later."""
        blocks: list[KVCacheBlock] = super().pop_blocks_for_free(request)
        self._left(request)
        return blocks

    def _left(self, request: Request) -> None:
        if self.admission is None:
            return
        if request.is_finished():
            ended = request.status in (
                RequestStatus.FINISHED_STOPPED,
                RequestStatus.FINISHED_LENGTH_CAPPED,
                RequestStatus.FINISHED_REPETITION,
            )
            self.admission.finished(request.request_id, request.num_output_tokens, learn=ended)
        else:
            self.admission.preempted(request.request_id)


def installed_kv_cache_manager(
    make_admission: Callable[[int], AdmissionController] | None,
    goes_first: Callable[[Request], bool],
) -> AbstractContextManager[None]:
    """Let a scheduler that is built inside use :class:`AdmissionControlledKVCacheManager`."""
    manager = partial(
        AdmissionControlledKVCacheManager, make_admission=make_admission, goes_first=goes_first
    )
    return substituted(scheduler_module, "KVCacheManager", manager)


class _ReadablePart:
    """A request as a look-up sees it that ends before ``num_tokens``; else it is the request."""

    def __init__(self, request: Request, num_tokens: int) -> None:
        self._request = request
        self.num_tokens = num_tokens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._request, name)


def _as_far_as_readable(request: Request, limit: int) -> Request:
    """What stands for ``request``, of which only ``limit`` tokens may come from the cache.

    vLLM finds at most all tokens but the last, so what may be read is followed by one token more.
    """
    return cast(Request, _ReadablePart(request, min(limit + 1, request.num_tokens)))


def _within(limit: int, longest: tuple[Any, ...]) -> tuple[Any, ...]:
    """vLLM 0.33's further argument of a look-up, the longest hit, where one is given."""
    if not longest or longest[0] is None:
        return longest
    return (min(longest[0], limit), *longest[1:])


def candidate_of(request: Request, max_model_len: int, block_size: int) -> Candidate:
    """What the admission may know of ``request``; ``max_model_len`` bounds its output.

    block_size: tokens of a block hash.

    A bad hint counts as none: it was to be refused when the request arrived, and here it would
    take the whole engine down.
    """
    params = request.sampling_params
    try:
        hint = hint_from(params.extra_args) if params is not None else None
    except ValueError:
        hint = None
    return Candidate(
        request_id=request.request_id,
        hashes=readable_hashes(request, block_size),
        num_prompt_tokens=request.num_prompt_tokens,
        num_tokens=request.num_tokens,
        max_tokens=max(min(request.max_tokens, max_model_len - request.num_prompt_tokens), 1),
        length_known=length_is_known(request),
        hint=hint,
        gives_way=request.priority > INTERACTIVE_PRIORITY,
    )


def length_is_known(request: Request) -> bool:
    """Whether nothing but ``max_tokens`` can end the output of ``request``."""
    params = request.sampling_params
    if params is None or params.min_tokens >= request.max_tokens:
        return True
    ends_early = (
        params.eos_token_id is not None
        or params.stop_token_ids
        or params.stop
        or params.repetition_detection
        or params.structured_outputs is not None
    )
    return not ends_early
