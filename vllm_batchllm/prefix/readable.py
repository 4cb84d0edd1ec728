# SPDX-License-Identifier: Apache-2.0
"""How much of its prompt a request may take from a cache.

vLLM returns the log-probabilities of a prompt from the rows that its forward pass computes, so it reads
nothing from the cache for a request that asks for them. Who says from which position on the values are wanted
needs only the rows behind it: the value of position ``k`` comes from the row of token ``k - 1``, and what lies
before that row may be cached.

A start is checked where requests come in (``plugin/prompt_logprobs.py``), which leaves the tokens that may come from a
cache beside it; the scheduler goes by that mark alone, so a front end that could not place the values shares nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Final, Protocol

from vllm_batchllm.messages import clip

START: Final = "prompt_logprobs_start"
"""Key inside ``SamplingParams.extra_args``: the first position whose log-probability is wanted."""

MARK: Final = "batchllm_readable_prompt_tokens"
"""Key that the front end adds to a checked start: prompt tokens that may come from a cache."""


class ReadingRequest(Protocol):
    """What must be known of a request; vLLM's ``Request`` has it all."""

    @property
    def block_hashes(self) -> Sequence[Any]: ...
    @property
    def skip_reading_prefix_cache(self) -> bool: ...
    @property
    def resumable(self) -> bool: ...


def start_from(params: Any, num_prompt_tokens: int) -> int | None:
    """The first position of the prompt whose log-probability is wanted; None if nothing is said.

    Args:
        params: sampling parameters, or None.
        num_prompt_tokens: length of the prompt; 0 if its tokens are not known.

    Raises:
        ValueError: the start is no whole number from 0 to the last position, or nothing is asked for
            whose start it could be; names the key and the value.
    """
    extra_args = getattr(params, "extra_args", None)
    if not extra_args or START not in extra_args:
        return None
    start = extra_args[START]
    if not num_prompt_tokens:
        raise ValueError(
            f"{START} = {clip(start)} needs a prompt of tokens; prompt embeddings have none"
        )
    is_number = isinstance(start, Integral) and not isinstance(start, bool)  # numpy's, too
    if not is_number or int(start) < 0:
        raise ValueError(
            f"{START} = {clip(start)} is not allowed; allowed: a whole number from 0 to "
            f"{num_prompt_tokens - 1} (a position in the prompt)"
        )
    if int(start) >= num_prompt_tokens:
        raise ValueError(
            f"{START} = {clip(start)} lies beyond the prompt of {num_prompt_tokens} tokens; the last "
            f"position is {num_prompt_tokens - 1}"
        )
    if params.prompt_logprobs is None and _scored_ids(params) is None:
        raise ValueError(
            f"{START} = {clip(start)} is given without prompt_logprobs; set both, or none"
        )
    return int(start)


def readable_tokens(params: Any, start: int) -> int:
    """Prompt tokens that may come from a cache if values are wanted from position ``start`` on."""
    readable = max(start - 1, 0)
    if _scored_ids(params) is None:
        return readable
    return min(readable, params.prompt_logprob_start or 0)  # a row, which is a position - 1


def marked_limit(params: Any) -> int | None:
    """Prompt tokens that may come from a cache by the front end's mark; None without a mark. O(1)."""
    extra_args: Mapping[str, Any] | None = getattr(params, "extra_args", None)
    limit = extra_args.get(MARK) if extra_args else None
    return limit if isinstance(limit, int) else None


def unplaceable_start(params: Any, num_pipeline_stages: int) -> str | None:
    """Why values from a start on cannot be given by this engine; None if they can, or no start is said."""
    extra_args = getattr(params, "extra_args", None)
    if not extra_args or START not in extra_args:
        return None
    if MARK not in extra_args:
        return (
            f"{START} was not seen by the front end, which would put the values at wrong positions; let "
            "the plugin load there, too (VLLM_PLUGINS), or leave the key out"
        )
    if num_pipeline_stages > 1:
        return f"{START} is not served with pipeline parallelism; leave the key out"
    return None


def readable_hashes(request: ReadingRequest, block_size: int) -> Sequence[Any]:
    """Hashes of the blocks that ``request`` may read from the cache; empty if it may read none.

    block_size: tokens of a hash. O(1) but for requests with a start, whose list is cut: O(blocks).
    """
    if not request.skip_reading_prefix_cache:
        return request.block_hashes
    limit = marked_limit(getattr(request, "sampling_params", None))
    return request.block_hashes[: limit // block_size] if limit else ()


def grouping_hashes(request: ReadingRequest, block_size: int) -> Sequence[Any]:
    """Hashes by which ``request`` can be grouped with others; empty if it waits by itself.

    It does without a full block that it may read, and as a streaming session, whose hashes are cut
    back when it goes on. Otherwise :func:`readable_hashes`.
    """
    return () if request.resumable else readable_hashes(request, block_size)


def _scored_ids(params: Any) -> Any:
    """The ids of ``prompt_logprob_token_ids``, which older versions of vLLM do not have."""
    return getattr(params, "prompt_logprob_token_ids", None)
