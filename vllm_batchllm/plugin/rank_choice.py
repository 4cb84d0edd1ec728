# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` with several ranks: a request goes where its prefix is, as far as the load allows.

vLLM's client balances load by itself, and takes the rank of a request that names one. So its method gets ours
in front: where the table knows a rank to be preferred, the request names it while vLLM files it, and no longer.
Everything else, whoever has no prefix above all, is chosen by vLLM, and the table learns what it chose.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import DPLBAsyncMPClient

from vllm_batchllm.compat.names import is_ours
from vllm_batchllm.log import get_logger
from vllm_batchllm.prefix.rank_affinity import PromptPath, RankAffinity, path_of
from vllm_batchllm.prefix.readable import marked_limit
from vllm_batchllm.scheduler.settings import config_of

logger = get_logger(__name__)

_tables: WeakKeyDictionary[Any, RankAffinity | None] = WeakKeyDictionary()
"""By client; None for one whose engine runs another scheduler, or whose user wants none."""


def install() -> None:
    """Let vLLM's clients of several ranks ask our table, where the scheduler is ours (idempotent)."""
    choose = DPLBAsyncMPClient.get_core_engine_for_request
    if not hasattr(choose, "batchllm_wrapped"):
        DPLBAsyncMPClient.get_core_engine_for_request = _by_prefix(choose)


def _by_prefix(choose: Any) -> Any:
    @functools.wraps(choose)
    def wrapped(self: Any, request: EngineCoreRequest) -> bytes:
        table = _table_of(self)
        if table is None or request.request_id in self.reqs_in_flight:
            engine: bytes = choose(self, request)
            return engine
        path = readable_path(request)
        rank = None
        if request.data_parallel_rank is None and path.hashes:
            rank = table.choose(path, loads_of(self))
        engine = choose(self, request) if rank is None else _sent_to(rank, choose, self, request)
        at = self.core_engines.index(engine)
        if at < table.num_ranks:  # more are being added
            table.note(path, at)
        return engine

    wrapped.batchllm_wrapped = True  # type: ignore[attr-defined]
    return wrapped


def _sent_to(rank: int, choose: Any, client: Any, request: EngineCoreRequest) -> bytes:
    """The engine of ``rank``, with ``request`` in vLLM's books as if vLLM had chosen it."""
    request.data_parallel_rank = rank
    try:
        engine: bytes = choose(client, request)
    finally:
        request.data_parallel_rank = None
    # vLLM counts a request until the ranks report again, but not one that named its rank.
    client.lb_engines[rank][0] += client.client_count
    return engine


def _table_of(client: Any) -> RankAffinity | None:
    """The table of a client, made with its first request and anew for another number of ranks."""
    table = _tables.get(client)
    num_ranks = min(len(client.core_engines), len(client.lb_engines))
    if client in _tables and (table is None or table.num_ranks == num_ranks):
        return table
    config = client.vllm_config
    is_wanted = is_ours(config.scheduler_config.scheduler_cls) and config_of(config).rank_affinity
    table = RankAffinity(num_ranks, client.client_count) if is_wanted else None
    _tables[client] = table
    return table


def loads_of(client: Any) -> list[float]:
    """Unfinished requests of each rank, as far as ``client`` knows.

    What the ranks have reported, or what this client has sent, times the number of clients, where that is more: reports are
    a tenth of a second old.
    """
    return [
        max(client.client_count * client.engine_inflight[engine], waiting + running)
        for engine, (waiting, running, *_) in zip(
            client.core_engines, client.lb_engines, strict=False
        )
    ]


def readable_path(request: EngineCoreRequest) -> PromptPath:
    """What ``request`` may find in a cache; empty if nothing, or if that is not for us to say.

    Empty for pooling, for prompts that are not tokens alone, and for streaming sessions, whose prompt goes on.
    """
    tokens, params = request.prompt_token_ids, request.sampling_params
    is_plain = not request.mm_features and request.prompt_embeds is None and not request.resumable
    if tokens is None or params is None or not is_plain:
        return PromptPath((), 0)
    if params.skip_reading_prefix_cache:
        tokens = tokens[: marked_limit(params) or 0]
    lora = request.lora_request
    apart = (lora.lora_name if lora is not None else None, request.cache_salt)
    try:
        return path_of(tokens, repr(apart) if any(apart) else "")
    except ValueError:  # no token ids; vLLM says so where it can
        return PromptPath((), 0)
