# SPDX-License-Identifier: Apache-2.0
"""``--model vllm-batchllm-completions``: its client of a completions server, which says where values begin.

The server is ``vllm serve --scheduler batchllm``. With the plain client the values are the same, and nothing is saved.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI

from vllm_batchllm.prefix.readable import START


@register_model("vllm-batchllm-completions")
class BatchLLMCompletions(LocalCompletionsAPI):
    """Its ``local-completions``; takes what that takes, and tokenises here (``tokenized_requests``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._starts: dict[bytes, int] = {}

    def batch_loglikelihood_requests(self, chunks: Iterable[Any]) -> Any:
        """Its method; remembers where the continuation of each prompt begins."""
        inputs, context_lengths, cache_keys = super().batch_loglikelihood_requests(chunks)
        for tokens, start in zip(inputs, context_lengths, strict=True):
            key = array("q", tokens).tobytes()
            self._starts[key] = min(start, self._starts.get(key, start))
        return inputs, context_lengths, cache_keys

    def _create_payload(
        self, messages: Any, generate: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Its method; the start of a body with several prompts is the earliest of theirs."""
        payload: dict[str, Any] = super()._create_payload(messages, generate=generate, **kwargs)
        if generate:
            return payload
        starts = [self._starts.get(array("q", tokens).tobytes(), 0) for tokens in messages]
        return payload | {"vllm_xargs": {START: max(min(starts, default=0), 0)}}
