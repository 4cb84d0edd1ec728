# SPDX-License-Identifier: Apache-2.0
"""The books of one batch: who waits for whose answer, who failed, what was saved so far."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import RequestOutput

from vllm_batchllm.offline.duplicates import DuplicateTable
from vllm_batchllm.offline.outputs import FailedRequestOutput, answer_duplicate
from vllm_batchllm.prefix.readable import readable_tokens, start_from

EngineInput = tuple[Any, Any, int]
"""A rendered prompt, its sampling parameters and its priority."""


@dataclass(slots=True)
class Followers:
    """Duplicates that wait for one answer: their ids and texts, and what to compute if it never comes."""

    engine_input: EngineInput
    waiting: list[tuple[str, str | None]] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """What one call has put into the books, so that it can be taken out again."""

    engine_ids: list[str] = field(default_factory=list)
    followed: list[tuple[str, str]] = field(default_factory=list)
    num_failures: int = 0
    num_tokens: int = 0
    num_expected: int = 0
    num_unshared: int = 0


@dataclass(slots=True)
class Batch:
    """Requests queued since the last run of the engine.

    tokens, namespaces: prompt token ids of the computed requests and what keeps them from
    sharing (adapter, salt, images), for the optimum. limits: tokens that each may read from the cache at
    most, None for all. lookahead: requests in the engine at most, None
    for all. backlog: requests not yet rendered
    because of the look-ahead; iterating queues one at a time and gives its id. While there is
    one, finished answers are kept for duplicates that are still to come. stand_ins: requests computed
    for duplicates alone, because the one that was to answer for them was aborted.
    """

    before: dict[str, Any]
    duplicates: DuplicateTable = field(default_factory=DuplicateTable)
    followers: dict[str, Followers] = field(default_factory=dict)
    stand_ins: set[str] = field(default_factory=set)
    call: Call = field(default_factory=Call)
    failures: list[FailedRequestOutput] = field(default_factory=list)
    engine_ids: set[str] = field(default_factory=set)
    tokens: list[Sequence[int]] = field(default_factory=list)
    namespaces: list[Hashable] = field(default_factory=list)
    limits: list[int | None] = field(default_factory=list)
    lookahead: int | None = None
    backlog: Iterator[str] | None = None
    answered: dict[str, RequestOutput] = field(default_factory=dict)
    ready: list[RequestOutput] = field(default_factory=list)
    num_expected: int = 0
    num_duplicates: int = 0
    num_unshared: int = 0
    num_finished: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def begin_call(self) -> None:
        """What comes from here on belongs to a new call."""
        self.call = Call(
            num_failures=len(self.failures),
            num_tokens=len(self.tokens),
            num_expected=self.num_expected,
            num_unshared=self.num_unshared,
        )

    def undo_call(self) -> list[str]:
        """Take the latest call out of the books; returns the engine's ids of its requests."""
        call = self.call
        for leader_id, request_id in call.followed:
            waiting = self.followers[leader_id].waiting
            waiting[:] = [one for one in waiting if one[0] != request_id]
            if not waiting:
                del self.followers[leader_id]
        for engine_id in call.engine_ids:
            self.duplicates.forget(engine_id.partition("-")[0])
        self.engine_ids.difference_update(call.engine_ids)
        del self.failures[call.num_failures :]
        del self.tokens[call.num_tokens :], self.namespaces[call.num_tokens :]
        del self.limits[call.num_tokens :]
        self.num_duplicates -= len(call.followed)
        self.num_expected, self.num_unshared = call.num_expected, call.num_unshared
        return call.engine_ids

    def follow(self, leader_id: str, request_id: str, engine_input: EngineInput) -> None:
        """Answer ``request_id`` with whatever ``leader_id`` gets, or already got."""
        self.num_duplicates += 1
        text = engine_input[0].get("prompt")
        answer = self.answered.get(leader_id)
        if answer is not None:
            self.ready.append(answer_duplicate(answer, request_id, text))
            return
        followers = self.followers.setdefault(leader_id, Followers(engine_input))
        followers.waiting.append((request_id, text))
        self.call.followed.append((leader_id, request_id))

    def take_orphans(self) -> list[Followers]:
        """Duplicates whose answer will never come; with nothing left in the engine."""
        orphans, self.followers = list(self.followers.values()), {}
        return orphans

    def stand_in(self, engine_id: str, orphans: Followers) -> None:
        """``engine_id`` is computed for ``orphans``, and answers nobody else."""
        request_id = engine_id.partition("-")[0]
        self.engine_ids.add(engine_id)
        self.stand_ins.add(request_id)
        self.followers[request_id] = orphans

    def queued(self, engine_id: str, prompt: Mapping[str, Any], lora: Any, params: Any) -> None:
        """Note a request that the engine will compute."""
        self.engine_ids.add(engine_id)
        self.call.engine_ids.append(engine_id)
        num_samples = getattr(params, "n", 1)
        tokens = prompt.get("prompt_token_ids") or ()
        limit = _limit(params, len(tokens))
        self.num_unshared += limit == 0
        self.tokens += [tokens] * num_samples
        self.namespaces += [_namespace(prompt, lora, reads=limit != 0)] * num_samples
        self.limits += [limit] * num_samples

    def finish(self, output: Any) -> list[Any]:
        """Book a finished output; returns it with the answers of its duplicates."""
        outputs = [] if output.request_id in self.stand_ins else [output]
        if isinstance(output, RequestOutput):
            followers = self.followers.pop(output.request_id, None)
            waiting = followers.waiting if followers is not None else ()
            outputs += [answer_duplicate(output, *follower) for follower in waiting]
            if self.backlog is not None:
                self.answered[output.request_id] = output
        for each in outputs:
            self._count(each)
        return outputs

    def take_ready(self) -> list[RequestOutput]:
        """Outputs of duplicates whose leader had finished before they came."""
        ready, self.ready = self.ready, []
        for each in ready:
            self._count(each)
        return ready

    def _count(self, output: Any) -> None:
        self.num_finished += 1
        if isinstance(output, RequestOutput):
            self.prompt_tokens += len(output.prompt_token_ids or ())
            self.cached_tokens += output.num_cached_tokens or 0
            self.output_tokens += sum(len(each.token_ids) for each in output.outputs)

    @property
    def saved_so_far(self) -> float:
        """Share of the finished requests' prompt tokens that were not computed at admission."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def _limit(params: Any, num_tokens: int) -> int | None:
    """Prompt tokens that a request may read from the cache, which the engine has taken; None for all."""
    start = start_from(params, num_tokens)
    if start is not None:
        return readable_tokens(params, start)
    return 0 if getattr(params, "skip_reading_prefix_cache", None) else None


def _namespace(prompt: Mapping[str, Any], lora: Any, *, reads: bool) -> Hashable:
    """Requests share a prefix only if these are equal."""
    if not reads or prompt.get("type") == "embeds":
        return object()
    images = prompt.get("mm_hashes")
    return (
        getattr(lora, "lora_name", None),
        prompt.get("cache_salt"),
        repr(images) if images else None,
    )
