# SPDX-License-Identifier: Apache-2.0
"""A model runner without a model: what the scheduler sends is computed on a memory of hashes.

Every slot of a KV block holds a hash of all tokens up to its own. So a block that was shared with
the wrong request, overwritten too early or never computed is noticed when somebody reads it. The
next token is a function of the same hash: each request has one right output.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from zlib import crc32

from fake_connector import Load, Transfers
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheSpec
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput

STOP = 999
"""The token that ends requests which have it as a stop token; one in 17 is one."""


def seed_of(salt: str | None) -> int:
    """The hash in front of the first token; requests with other salts share nothing."""
    return crc32((salt or "").encode())


def extended(prefix: int, token: int) -> int:
    """The hash of a prefix and the token behind it."""
    return hash((prefix, token))


def next_token(prefix: int) -> int:
    """What the model says behind a prefix."""
    return STOP if prefix % 17 == 0 else 100 + prefix % 800


def right_output(
    prompt: Sequence[int], salt: str | None, max_tokens: int, stops: bool
) -> list[int]:
    """The one right output of a request."""
    prefix = seed_of(salt)
    for token in prompt:
        prefix = extended(prefix, token)
    output: list[int] = []
    while len(output) < max_tokens and not (stops and output and output[-1] == STOP):
        output.append(next_token(prefix))
        prefix = extended(prefix, output[-1])
    return output


@dataclass
class Row:
    """What a worker keeps of a request: its tokens, their hashes, its block tables, its drafts."""

    seed: int
    tables: list[list[int]]
    tokens: list[int] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prefixes = [self.seed]

    def replace(self, tokens: Iterable[int]) -> None:
        self.tokens, self.prefixes, self.drafts = [], [self.seed], []
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        self.tokens.append(token)
        self.prefixes.append(extended(self.prefixes[-1], token))


class FakeWorker:
    """Executes steps in the order in which they are scheduled.

    Args:
        specs: one per KV cache group.
        salt_of: the cache salt of a request, by id.
        num_drafts: tokens guessed behind each output; some of them wrong.
        is_async: steps overlap, so the scheduler counts drafts before they are checked.
    """

    def __init__(
        self,
        specs: Sequence[KVCacheSpec],
        salt_of: Callable[[str], str | None],
        num_drafts: int = 0,
        is_async: bool = False,
    ) -> None:
        self.sizes = [spec.block_size for spec in specs]
        self.windows = [getattr(spec, "sliding_window", None) for spec in specs]
        self.salt_of = salt_of
        self.num_drafts = num_drafts
        self.is_async = is_async
        self.rows: dict[str, Row] = {}
        self.memory: defaultdict[int, dict[int, int]] = defaultdict(dict)
        self.transfers = Transfers()

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        """The tokens of one step; empty lists for prompts that are not complete."""
        for request_id in output.finished_req_ids:
            self.rows.pop(request_id, None)
        for copy in output.kv_cache_block_copies or ():
            self.memory[copy.dst_block_id] = dict(self.memory[copy.src_block_id])
        starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        for new in output.scheduled_new_reqs:
            self._add(new)
        cached = output.scheduled_cached_reqs
        starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        self._update(cached)
        news = self._transfer(output)
        ids = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=[
                self._run(
                    self.rows[request_id],
                    starts[request_id],
                    output.num_scheduled_tokens[request_id],
                    output.scheduled_spec_decode_tokens.get(request_id, []),
                )
                for request_id in ids
            ],
            kv_connector_output=news,
        )

    def drafts(self) -> DraftTokenIds:
        """The guesses behind what each request has said."""
        ids = [request_id for request_id, row in self.rows.items() if row.drafts]
        return DraftTokenIds(ids, [list(self.rows[request_id].drafts) for request_id in ids])

    def _add(self, new: NewRequestData) -> None:
        row = Row(seed_of(self.salt_of(new.req_id)), [list(ids) for ids in new.block_ids])
        tokens = new.prefill_token_ids or new.prompt_token_ids
        assert tokens is not None
        row.replace(tokens)
        self.rows[new.req_id] = row

    def _update(self, cached: CachedRequestData) -> None:
        for request_id, new_ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
            row = self.rows[request_id]
            if request_id in cached.resumed_req_ids:
                row.tables = [list(ids) for ids in new_ids or ()]
            else:
                for table, ids in zip(row.tables, new_ids or [()] * len(self.sizes), strict=True):
                    table.extend(ids)
            tokens = cached.all_token_ids.get(request_id)
            if tokens is not None and tokens != row.tokens:
                assert request_id in cached.resumed_req_ids, "tokens changed under way"
                row.replace(tokens)

    def _run(self, row: Row, start: int, num_tokens: int, drafts: list[int]) -> list[int]:
        num_new = num_tokens - len(drafts)
        first = min(start, len(row.tokens) - num_new)
        assert first == start or (self.is_async and self.num_drafts), "a token is skipped"
        assert first >= 0 and num_new > 0
        if self.is_async and drafts:
            guesses, row.drafts = row.drafts, []
            drafts = (guesses + [-1] * len(drafts))[: len(drafts)]
        inputs = row.tokens[first : first + num_new] + drafts
        self._read(row, first)
        self._write(row, first, inputs)
        if first + num_new < len(row.tokens):
            return []
        return self._sample(row, drafts)

    def _sample(self, row: Row, drafts: Sequence[int]) -> list[int]:
        before = len(row.tokens)
        for draft in (*drafts, None):
            row.append(next_token(row.prefixes[-1]))
            if row.tokens[-1] != draft:
                break
        row.drafts = []
        if self.num_drafts:
            self._guess(row)
        return row.tokens[before:]

    def _guess(self, row: Row) -> None:
        """Some right tokens, and then a wrong one."""
        prefix = row.prefixes[-1]
        num_right = prefix % (self.num_drafts + 1)
        num_guesses = self.num_drafts if self.is_async else prefix // 7 % (self.num_drafts + 1)
        for position in range(num_guesses):
            token = next_token(prefix)
            row.drafts.append(token if position < num_right else 50 + position)
            prefix = extended(prefix, row.drafts[-1])

    def _read(self, row: Row, first: int) -> None:
        """What the step's first token attends to must be what the request's own tokens gave."""
        for group, (size, window) in enumerate(zip(self.sizes, self.windows, strict=True)):
            for position in range(0 if window is None else max(first - window + 1, 0), first):
                block_id = row.tables[group][position // size]
                found = self.memory[block_id].get(position % size)
                right = extended(row.prefixes[position + 1], group)
                assert found == right, f"block {block_id} holds something else at {position}"

    def _write(self, row: Row, first: int, inputs: Sequence[int]) -> None:
        prefix = row.prefixes[first]
        for position, token in enumerate(inputs, first):
            prefix = extended(prefix, token)
            self._store(row.tables, position, prefix)

    def _store(self, tables: Sequence[Sequence[int]], position: int, prefix: int) -> None:
        for group, size in enumerate(self.sizes):
            block_id = tables[group][position // size]
            if block_id:  # the null block stands for what is outside of a window
                self.memory[block_id][position % size] = extended(prefix, group)

    def _transfer(self, output: SchedulerOutput) -> KVConnectorOutput | None:
        """Let loads and saves go on by one step; loads write what was computed elsewhere."""
        if output.kv_connector_metadata is None:
            return None
        for load in self.transfers.begin(output.kv_connector_metadata):
            self._load(load)
        for load in self.transfers.step():
            self._load(load)
        return self.transfers.news(len(self.sizes) > 1)

    def _load(self, load: Load) -> None:
        prefix = seed_of(load.salt)
        for position, token in enumerate(load.tokens[: load.num_good]):
            prefix = extended(prefix, token)
            if position >= load.start:
                self._store(load.tables, position, prefix)
