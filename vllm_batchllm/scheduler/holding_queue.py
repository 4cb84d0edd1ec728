# SPDX-License-Identifier: Apache-2.0
"""A waiting queue in front of which requests may be held back for a moment.

A held request waits as far as anybody counts, but the queue does not show it: its truth value and its head are those of
the queue behind it. Only requests that have just come are held, never one that runs, was preempted or waits for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request, RequestStatus

from vllm_batchllm.admission.group_release import GroupRelease
from vllm_batchllm.admission.one_shot_release import OneShotRelease


class HoldingQueue(RequestQueue):
    """``inner``, and who is held in front of it.

    Args:
        inner: vLLM's queue or ours. one_shot, groups: who holds; None holds nobody of that kind.
        is_one_shot: whether a request is. holds_group: asks ``groups`` whether it holds a request.
    """

    def __init__(
        self,
        inner: RequestQueue,
        one_shot: OneShotRelease[Request] | None,
        groups: GroupRelease[Request] | None,
        is_one_shot: Callable[[Request], bool],
        hold_one_shot: Callable[[Request], None],
        hold_group: Callable[[Request], bool],
    ) -> None:
        self.inner = inner
        self.one_shot, self.groups = one_shot, groups
        self._is_one_shot, self._hold_one_shot, self._hold_group = (
            is_one_shot,
            hold_one_shot,
            hold_group,
        )

    @property
    def num_held(self) -> int:
        """Requests that are held."""
        return sum(
            len(holder.held) for holder in (self.one_shot, self.groups) if holder is not None
        )

    def add_request(self, request: Request) -> None:
        """A request has come: it is held, or waits."""
        if request.status is RequestStatus.WAITING and not request.resumable:
            if self.one_shot is not None and self._is_one_shot(request):
                self._hold_one_shot(request)
                return
            if self.groups is not None and self._hold_group(request):
                return
        self.inner.add_request(request)

    def release(self, requests: Iterable[Request]) -> None:
        """These were held, and wait from now on."""
        for request in requests:
            self.inner.add_request(request)

    def pop_request(self) -> Request:
        return self.inner.pop_request()

    def peek_request(self) -> Request:
        return self.inner.peek_request()

    def prepend_request(self, request: Request) -> None:
        self.inner.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        self.inner.prepend_requests(requests)

    def remove_request(self, request: Request) -> None:
        """Take an aborted request out. Raises ValueError if it is neither held nor waits."""
        is_held = self._is_held(request)
        if self.one_shot is not None and request in self.one_shot.held:
            self.one_shot.held.remove(request)
        elif self.groups is not None:
            self.groups.left(request)
        if not is_held:
            self.inner.remove_request(request)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take out those of ``requests`` that are held or wait."""
        rest = []
        for request in requests:
            if self._is_held(request):
                self.remove_request(request)
                continue
            rest.append(request)
            if self.groups is not None:
                self.groups.left(request)
        if rest:  # vLLM's goes through everybody
            self.inner.remove_requests(rest)

    def _held(self) -> Iterator[Request]:
        holders = (self.one_shot, self.groups)
        return chain.from_iterable(holder.held for holder in holders if holder is not None)

    def _is_held(self, request: object) -> bool:
        return any(
            holder is not None and request in holder.held for holder in (self.one_shot, self.groups)
        )

    def __contains__(self, request: object) -> bool:
        return self._is_held(request) or request in self.inner

    def __bool__(self) -> bool:
        return bool(self.inner)

    def __len__(self) -> int:
        return len(self.inner) + self.num_held

    def __iter__(self) -> Iterator[Request]:
        """Who waits in the order of admission, then who is held."""
        yield from self.inner
        yield from self._held()

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        held = list(self._held())
        assert len(held) == len(set(held)), "a request is held twice"
        assert not any(request in self.inner for request in held), "a held request waits"
        if self.groups is not None:
            self.groups.check_integrity()
