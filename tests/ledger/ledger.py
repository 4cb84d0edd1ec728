# SPDX-License-Identifier: Apache-2.0
"""The ledger: everything of vLLM that we rely on, with why, how, and when it can go.

vLLM calls its scheduler interface non-public and moves it freely. The tests beside this file look
up every entry on the vLLM that is installed; ``drift.py`` tells what has changed in another.
"""

from __future__ import annotations

from entries_attention import ATTENTION
from entries_attributes import ATTRIBUTES
from entries_batch_api import BATCH_API
from entries_engine import ENGINE, PROMPT_LOGPROBS
from entries_jobs import JOBS
from entries_kv_cache import KV_CACHE
from entries_llm import LLM
from entries_ranks import RANKS
from entries_replicas import REPLICAS
from entries_scheduler import SCHEDULING
from entries_stats import STATS
from vllm_symbol import Entry, VLLMSymbol

SYMBOLS: tuple[VLLMSymbol, ...] = (
    *SCHEDULING,
    *KV_CACHE,
    *ENGINE,
    *PROMPT_LOGPROBS,
    *ATTENTION,
    *LLM,
    *JOBS,
    *STATS,
    *BATCH_API,
    *RANKS,
    *REPLICAS,
)

LEDGER: tuple[Entry, ...] = (*SYMBOLS, *ATTRIBUTES)
