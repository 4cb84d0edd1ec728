# SPDX-License-Identifier: Apache-2.0
"""The books of one batch: who waits for whose answer, who failed, what was saved so far."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import RequestOutput

from vllm_batchllm.offline.duplicates import DuplicateTable
from vllm_batchllm.offline.outputs import FailedRequestOutput, answer_duplicate


@dataclass(slots=True)
class Batch:
    """Requests queued since the last run of the engine.

    tokens, namespaces: prompt token ids of the computed requests and what keeps them from
    sharing (adapter, salt, images), for the optimum. lookahead: requests in the engine at most, None
    for all. backlog: requests not yet rendered
    because of the look-ahead; iterating queues one at a time and gives its id. While there is
    one, finished answers are kept for duplicates that are still to come.
    """

    before: dict[str, Any]
    duplicates: DuplicateTable = field(default_factory=DuplicateTable)
    followers: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    failures: list[FailedRequestOutput] = field(default_factory=list)
    engine_ids: set[str] = field(default_factory=set)
    tokens: list[Sequence[int]] = field(default_factory=list)
    namespaces: list[Hashable] = field(default_factory=list)
    lookahead: int | None = None
    backlog: Iterator[str] | None = None
    answered: dict[str, RequestOutput] = field(default_factory=dict)
    ready: list[RequestOutput] = field(default_factory=list)
    num_expected: int = 0
    num_duplicates: int = 0
    num_finished: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def follow(self, leader_id: str, request_id: str, prompt: str | None) -> None:
        """Answer ``request_id`` with whatever ``leader_id`` gets, or already got."""
        self.num_duplicates += 1
        answer = self.answered.get(leader_id)
        if answer is not None:
            self.ready.append(answer_duplicate(answer, request_id, prompt))
        else:
            self.followers.setdefault(leader_id, []).append((request_id, prompt))

    def queued(self, engine_id: str, prompt: Mapping[str, Any], lora: Any, params: Any) -> None:
        """Note a request that the engine will compute."""
        self.engine_ids.add(engine_id)
        num_samples = getattr(params, "n", 1)
        self.tokens += [prompt.get("prompt_token_ids") or ()] * num_samples
        self.namespaces += [_namespace(prompt, lora, params)] * num_samples

    def finish(self, output: Any) -> list[Any]:
        """Book a finished output; returns it with the answers of its duplicates."""
        outputs = [output]
        if isinstance(output, RequestOutput):
            followers = self.followers.pop(output.request_id, ())
            outputs += [answer_duplicate(output, *follower) for follower in followers]
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


def _namespace(prompt: Mapping[str, Any], lora: Any, params: Any) -> Hashable:
    """Requests share a prefix only if these are equal."""
    if getattr(params, "skip_reading_prefix_cache", None) or prompt.get("type") == "embeds":
        return object()
    images = prompt.get("mm_hashes")
    return (
        getattr(lora, "lora_name", None),
        prompt.get("cache_salt"),
        repr(images) if images else None,
    )
