# SPDX-License-Identifier: Apache-2.0
"""How likely continuations are behind their contexts: pairs of tokens in, requests out, values back.

Nobody needs what the model says behind a pair, so its last token need not be computed: its value is that of a
token that could have been sampled behind the rest. So pairs that differ in their last token only (the letters of
a multiple choice) are one request, and a continuation of one token needs no log-probabilities of a prompt at all. A
longer one asks for those from its beginning on, and what lies before comes from the cache.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams

from vllm_batchllm.prefix.readable import START

MAX_LAST_TOKENS = 64
"""Pairs that differ in their last token which one request answers; vLLM takes 128 ids."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a continuation is.

    logprob: natural logarithm of its probability behind the context, the sum of ``token_logprobs``.
    is_greedy: whether each of its tokens is the most likely one behind those before it.
    """

    logprob: float
    token_logprobs: tuple[float, ...]
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A context and a continuation behind it, as token ids; neither is empty."""

    context: Sequence[int]
    continuation: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        """Both, in one list."""
        return [*self.context, *self.continuation]


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One request of the engine: it scores ``members``, places in the caller's list of pairs."""

    prompt: list[int]
    start: int
    last_tokens: list[int]
    members: list[int]

    def params(self) -> SamplingParams:
        """What the engine is asked: values from the start on, and those of the last tokens."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=self.last_tokens,
            detokenize=False,
            ignore_eos=True,
        )
        if self.start >= len(self.prompt):
            return params
        return SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=self.last_tokens,
            detokenize=False,
            ignore_eos=True,
            prompt_logprobs=1,
            extra_args={START: self.start},
        )


def scoring_requests(pairs: Mapping[int, Pair]) -> list[ScoringRequest]:
    """The fewest requests that score ``pairs``, given by their places, in the order of their first ones."""
    alike: dict[bytes, list[int]] = {}
    for place, pair in pairs.items():
        alike.setdefault(array("q", pair.tokens[:-1]).tobytes(), []).append(place)
    requests = []
    for places in alike.values():
        by_last: dict[int, list[int]] = {}
        for place in places:
            by_last.setdefault(pairs[place].continuation[-1], []).append(place)
        last_tokens = list(by_last)
        for first in range(0, len(last_tokens), MAX_LAST_TOKENS):
            chosen = last_tokens[first : first + MAX_LAST_TOKENS]
            members = [place for token in chosen for place in by_last[token]]
            requests.append(
                ScoringRequest(
                    pairs[places[0]].tokens[:-1],
                    min(len(pairs[place].context) for place in members),
                    chosen,
                    members,
                )
            )
    return requests


def likelihood_of(pair: Pair, output: Any) -> Likelihood:
    """The values of ``pair`` in the output of the request that scores it."""
    tokens, start = pair.tokens, len(pair.context)
    values, is_greedy = [], True
    for position in range(start, len(tokens) - 1):
        value, is_best = _value_in(output.prompt_logprobs[position], tokens[position])
        values.append(value)
        is_greedy = is_greedy and is_best
    value, is_best = _value_in(output.outputs[0].logprobs[0], tokens[-1])
    values.append(value)
    return Likelihood(sum(values), tuple(values), is_greedy and is_best)


def _value_in(logprobs: Mapping[int, Any], token: int) -> tuple[float, bool]:
    """The log-probability of ``token``, and whether no other is more likely.

    The most likely token stands among ``logprobs``: as the sampled one, or as the first by rank.
    """
    value = logprobs[token].logprob
    return value, all(other.logprob <= value for other in logprobs.values())
