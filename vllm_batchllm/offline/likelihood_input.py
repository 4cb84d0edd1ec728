# SPDX-License-Identifier: Apache-2.0
"""Contexts and continuations as users have them, text or tokens, made into pairs of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vllm_batchllm.messages import clip
from vllm_batchllm.offline.likelihood import Pair

TextOrTokens = str | Sequence[int]


class PairMaker:
    """Makes pairs for one model.

    Args:
        encode: token ids of a text.
        prefix_token: stands for a context that is empty; None if the tokenizer has no token that begins or
            ends a text.
        max_tokens: the longest pair that the model takes, tokens.
    """

    def __init__(
        self, encode: Callable[[str], list[int]], prefix_token: int | None, max_tokens: int
    ) -> None:
        self._encode = encode
        self._prefix_token = prefix_token
        self._max_tokens = max_tokens

    def pair(self, context: TextOrTokens, continuation: TextOrTokens) -> Pair:
        """One pair.

        Texts are encoded as one and cut where the context alone ends, with spaces at the end of the
        context counted to the continuation, as lm-evaluation-harness does.

        Raises:
            ValueError: the continuation is empty, one is a text and the other is not, the pair is longer than the
                model allows, or the context is empty and nothing can stand for it; names the value.
        """
        if isinstance(context, str) != isinstance(continuation, str):
            raise ValueError("context and continuation must both be texts, or both token ids")
        if isinstance(context, str) and isinstance(continuation, str):
            head, tail = self._split(context, continuation)
        else:
            head, tail = list(context), list(continuation)  # type: ignore[arg-type]
        if not tail:
            raise ValueError(
                f"the continuation {clip(continuation)} has no tokens, so it has no likelihood"
            )
        pair = Pair(head or [self._prefix()], tail)
        num_tokens = len(pair.context) + len(pair.continuation)
        if num_tokens > self._max_tokens:
            raise ValueError(
                f"context and continuation have {num_tokens:,} tokens together, and the model takes "
                f"{self._max_tokens:,} (max_model_len); cut the context from the left"
            )
        return pair

    def windows(self, text: TextOrTokens) -> list[Pair]:
        """Pairs whose continuations are the text, each token once, with as much context as fits.

        The first window begins behind the prefix token. Every later one predicts as many tokens as the model
        takes; the last one has less to predict and more context.

        Raises:
            ValueError: the text is empty, or nothing can stand before it.
        """
        tokens = self._encode(text) if isinstance(text, str) else list(text)
        if not tokens:
            raise ValueError("an empty text has no likelihood")
        return list(self._windows([self._prefix(), *tokens]))

    def _windows(self, tokens: list[int]) -> Iterator[Pair]:
        """``tokens`` from the second on, in windows; the first is context only."""
        room = self._max_tokens - 1  # tokens that one window can predict
        done = 1
        while done < len(tokens):
            end = min(done + room, len(tokens))
            begin = max(end - self._max_tokens, 0)
            yield Pair(tokens[begin:done], tokens[done:end])
            done = end

    def _split(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if not context:
            return [], self._encode(continuation)
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        whole = self._encode(stripped + continuation)
        num_context = len(self._encode(stripped))
        return whole[:num_context], whole[num_context:]

    def _prefix(self) -> int:
        if self._prefix_token is None:
            raise ValueError(
                "the tokenizer has no token that begins or ends a text; give a context"
            )
        return self._prefix_token


def prefix_token_of(tokenizer: Any) -> int | None:
    """The token that begins a text, or else the one that ends it."""
    for name in ("bos_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    return None
