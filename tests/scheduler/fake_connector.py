# SPDX-License-Identifier: Apache-2.0
"""A KV connector to nowhere: loads arrive late, or fail, and saves hold blocks for a while.

What happens to a request is told by its ``kv_transfer_params``: {"tokens": how many of the prompt
are elsewhere, "is_async": they come between steps, "undecided": answers of "not known yet",
"delay": steps that a load takes, "fails": it does not arrive, "saves": steps for which its
blocks are held at the end}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    SupportsHMA,
)
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus


@dataclass
class Load:
    """Tokens ``start`` and up of a prompt, to be written into blocks; all but ``num_good``."""

    request_id: str
    salt: str | None
    tokens: list[int]
    start: int
    num_good: int
    tables: list[list[int]]
    delay: int
    is_async: bool
    block_size: int

    def bad_blocks(self) -> set[int]:
        (table,) = self.tables
        first, end = self.num_good // self.block_size, -(-len(self.tokens) // self.block_size)
        return set(table[first:end])


@dataclass
class TransferMetadata(KVConnectorMetadata):
    """What the worker is to begin with in this step."""

    loads: list[Load] = field(default_factory=list)
    saves: dict[str, int] = field(default_factory=dict)


class FakeConnector(KVConnectorBase_V1, SupportsHMA):
    """The scheduler's end."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._next = TransferMetadata()
        self._undecided: dict[str, int] = {}
        self._found: dict[str, int] = {}
        self._failed: set[str] = set()
        self._block_size = max(
            group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups
        )

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        params = request.kv_transfer_params
        if not params or request.request_id in self._failed:
            return 0, False
        asked = self._undecided.get(request.request_id, 0)
        self._undecided[request.request_id] = asked + 1
        if asked < params["undecided"]:
            return None, False
        is_async = params["is_async"]
        most = min(params["tokens"], request.num_prompt_tokens - (not is_async))
        num_found = most // self._block_size * self._block_size - num_computed_tokens
        self._found[request.request_id] = num_computed_tokens
        return (num_found, is_async) if num_found > 0 else (0, False)

    def update_state_after_alloc(
        self, request: Request, blocks: Any, num_external_tokens: int
    ) -> None:
        if not num_external_tokens:
            return
        params = request.kv_transfer_params
        assert params is not None
        start = self._found[request.request_id]
        end = start + num_external_tokens
        fails = params["fails"] and params["is_async"]
        if fails:
            self._failed.add(request.request_id)
        half = (start + num_external_tokens // 2) // self._block_size * self._block_size
        load = Load(
            request_id=request.request_id,
            salt=request.cache_salt,
            tokens=list(request.all_token_ids[:end]),
            start=start,
            num_good=half if fails else end,
            tables=[list(ids) for ids in blocks.get_block_ids()],
            delay=params["delay"],
            is_async=params["is_async"],
            block_size=self._block_size,
        )
        self._next.loads.append(load)

    def build_connector_meta(self, scheduler_output: Any) -> TransferMetadata:
        metadata, self._next = self._next, TransferMetadata()
        return metadata

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        params = request.kv_transfer_params
        has_ended = request.status in (
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        )
        if not params or not params["saves"] or not has_ended or not any(map(any, block_ids)):
            return False, None
        self._next.saves[request.request_id] = params["saves"]
        return True, None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...
    def wait_for_layer_load(self, layer_name: str) -> None: ...
    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...
    def wait_for_save(self) -> None: ...


class Transfers:
    """The worker's end."""

    def __init__(self) -> None:
        self.loading: list[Load] = []
        self.saving: dict[str, int] = {}
        self._news = KVConnectorOutput()

    def __bool__(self) -> bool:
        return bool(self.loading or self.saving)

    def begin(self, metadata: KVConnectorMetadata) -> list[Load]:
        """Take note of what is to be done; return the loads that are needed in this very step."""
        assert isinstance(metadata, TransferMetadata)
        self.loading += [load for load in metadata.loads if load.is_async]
        self.saving |= metadata.saves
        return [load for load in metadata.loads if not load.is_async]

    def step(self) -> list[Load]:
        """Return the loads that have arrived, after their delays."""
        arrived = [load for load in self.loading if load.delay <= 0]
        self.loading = [load for load in self.loading if load.delay > 0]
        for load in self.loading:
            load.delay -= 1
        sent = {request_id for request_id, delay in self.saving.items() if delay <= 0}
        self.saving = {name: delay - 1 for name, delay in self.saving.items() if name not in sent}
        self._news = KVConnectorOutput(finished_sending=sent)
        self._news.finished_recving = {load.request_id for load in arrived}
        self._failed = [load for load in arrived if load.num_good < len(load.tokens)]
        return arrived

    def news(self, has_groups: bool) -> KVConnectorOutput | None:
        """What the scheduler is told: block ids say which of several groups only where one is."""
        bad: Sequence[Load] = self._failed
        if has_groups:
            self._news.failed_recving = {load.request_id for load in bad}
        else:
            self._news.invalid_block_ids = set().union(*(load.bad_blocks() for load in bad))
        return self._news
