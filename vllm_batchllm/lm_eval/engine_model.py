# SPDX-License-Identifier: Apache-2.0
"""``--model vllm-batchllm``: lm-evaluation-harness's vLLM model on our engine.

What it adds: a task's likelihoods are one batch, whatever its batch size, of which each context is computed once.
Tokenisation, truncation, windows and everything about generation stay its own.
"""

from __future__ import annotations

import logging
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models import vllm_causallms

from vllm_batchllm.compat.patching import substituted
from vllm_batchllm.llm import LLM
from vllm_batchllm.offline.outputs import FailedRequestOutput

logger = logging.getLogger(__name__)

Request = tuple[Any, list[int], list[int]]
"""What the answer is cached under, the context, and the continuation, as token ids."""


@register_model("vllm-batchllm")
class BatchLLMModel(vllm_causallms.VLLM):
    """Its vLLM model, with :class:`vllm_batchllm.LLM` as the engine.

    Args:
        pretrained, **kwargs: as its ``vllm`` model takes them; what is not known there goes to the engine
            (``batchllm={...}``, ``block_size=...``).

    Raises:
        ValueError: ``data_parallel_size`` is above 1: its replicas would run vLLM's own engine.
    """

    def __init__(self, pretrained: str, data_parallel_size: int = 1, **kwargs: Any) -> None:
        if int(data_parallel_size) > 1:
            raise ValueError(
                f"data_parallel_size = {data_parallel_size} is not served by the model vllm-batchllm; leave it "
                "out, or take the model vllm"
            )
        with substituted(vllm_causallms, "LLM", LLM):
            super().__init__(pretrained, **kwargs)

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Its method: log-likelihood and greediness of each request, in their order."""
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        results = self.model.loglikelihood(
            [context for context, _ in cut],
            [continuation for _, continuation in cut],
            use_tqdm=not disable_tqdm,
            lora_request=self.lora_request,
        )
        answers = []
        for (cache_key, _, _), result in zip(requests, results, strict=True):
            if isinstance(result, FailedRequestOutput):
                raise result.error
            answers.append((result.logprob, result.is_greedy))
            if (
                cache_key is not None
            ):  # windows of a rolling likelihood are cached as a whole, there
                self.cache_hook.add_partial("loglikelihood", cache_key, answers[-1])
        logger.info("%s", self.model.report())
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The last tokens of both that its vLLM model keeps, at least one of them as context."""
        longest = self.max_length - 1
        tokens = [*context, *continuation][-longest:]
        num_context = max(len(tokens) - len(continuation), 1)
        return tokens[:num_context], tokens[num_context:]
