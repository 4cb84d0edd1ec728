# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a prompt from a start on: checked as a request comes in, placed as they come out.

vLLM's front end appends the rows that it gets from position 1 on, for it expects all of them. If the beginning
of a prompt came from the cache, model runner V1 sends rows there that nobody has written, and V2 sends none. In both cases
the last rows are those of the last positions, so they are counted from the end, and nothing else is looked at.
"""

from __future__ import annotations

from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.v1.engine import EngineCoreRequest, output_processor
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors

from vllm_batchllm.log import get_logger
from vllm_batchllm.prefix.readable import MARK, START, readable_tokens, start_from

logger = get_logger(__name__)


class StartedLogprobsProcessor(LogprobsProcessor):
    """vLLM's, for requests that may say from which position on they want values.

    Positions before the start are None in the answer. Without a start it is vLLM's.
    """

    _start: int | None = None
    _prompt: list[int] | None = None

    @classmethod
    def from_new_request(cls, tokenizer: Any, request: EngineCoreRequest) -> LogprobsProcessor:
        """vLLM's. Called before the engine core gets ``request``, which leaves with the start marked.

        Raises:
            VLLMValidationError: a start that is not allowed; names the key and the value.
        """
        start = mark_start(request)
        processor: LogprobsProcessor = super().from_new_request(tokenizer, request)
        if start is not None and isinstance(processor, cls):
            processor._start, processor._prompt = start, request.prompt_token_ids
        return processor

    def _update_prompt_logprobs(self, prompt_logprobs_tensors: LogprobsTensors) -> None:
        if self._start is None or self._prompt is None or self.prompt_logprobs is None:
            super()._update_prompt_logprobs(prompt_logprobs_tensors)
            return
        rows = prompt_logprobs_tensors
        num_positions = len(self._prompt) - max(self._start, 1)
        num_rows = min(len(rows.logprobs), num_positions)
        if num_rows < num_positions:
            logger.error(
                "%d of %d log-probabilities of a prompt are missing",
                num_positions - num_rows,
                num_positions,
            )
        while len(self.prompt_logprobs) < len(self._prompt) - num_rows:
            self.prompt_logprobs.append(None)
        first = len(rows.logprobs) - num_rows
        super()._update_prompt_logprobs(
            LogprobsTensors(
                rows.logprob_token_ids[first:],
                rows.logprobs[first:],
                rows.selected_token_ranks[first:],
            )
        )

    def _get_sampled_context_ids(self, logprobs_source: Any, max_context: int = 4) -> list[int]:
        """vLLM's; in front of the start there are no values to read the tokens from, so the prompt says them."""
        if self._prompt is None or logprobs_source is not self.prompt_logprobs:
            context: list[int] = super()._get_sampled_context_ids(logprobs_source, max_context)
            return context
        position = len(logprobs_source)
        return list(self._prompt[max(position - max_context, 1) : position])


def mark_start(request: EngineCoreRequest) -> int | None:
    """Check the start of ``request`` and leave beside it what may come from a cache; None without one.

    Raises:
        VLLMValidationError: the start, or the mark, which is ours to set, is not allowed.
    """
    params = request.sampling_params
    extra_args = getattr(params, "extra_args", None)
    if not extra_args or (START not in extra_args and MARK not in extra_args):
        return None
    if MARK in extra_args and START not in extra_args:
        raise VLLMValidationError(f"{MARK} is set by the engine; give {START}", parameter=MARK)
    try:
        start = start_from(params, len(request.prompt_token_ids or ()))
        if request.resumable:
            raise ValueError(
                f"{START} = {start} is not served for streaming sessions, whose prompt goes on"
            )
    except ValueError as error:
        raise VLLMValidationError(str(error), parameter=START) from None
    assert start is not None and params is not None
    # The dictionary may be the caller's; connectors, which know no limit, are to load nothing.
    params.extra_args = {**extra_args, MARK: readable_tokens(params, start)}
    params.skip_reading_prefix_cache = True
    return start


def install() -> None:
    """Let vLLM's front ends in this process build :class:`StartedLogprobsProcessor` (idempotent)."""
    output_processor.LogprobsProcessor = StartedLogprobsProcessor
