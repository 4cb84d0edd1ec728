# SPDX-License-Identifier: Apache-2.0
"""The door: ``from vllm_batchllm import LLM``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from vllm.platforms import current_platform

from vllm_batchllm.compat.version import check_vllm_version
from vllm_batchllm.offline.arguments import check_model_folder
from vllm_batchllm.offline.engine import OfflineEngine
from vllm_batchllm.offline.likelihood import Likelihood, Pair, likelihood_of, scoring_requests
from vllm_batchllm.offline.likelihood_input import PairMaker, TextOrTokens, prefix_token_of
from vllm_batchllm.offline.outputs import FailedRequestOutput
from vllm_batchllm.replicas.llm_methods import ReplicatedMethods
from vllm_batchllm.replicas.llm_options import num_replicas_of


class LLM(OfflineEngine):
    """``vllm.LLM`` for batches that share prefixes; same arguments, methods and outputs.

    Args:
        model: as in ``vllm.LLM``.
        batchllm: our options, as a mapping or a :class:`BatchLLMConfig`.
        **kwargs: everything else that ``vllm.LLM`` takes.

    Outputs come in the caller's order. In a call with several prompts, one that vLLM refuses
    (too long, empty, ...) yields a :class:`FailedRequestOutput` in its place and the others
    complete; if none can be accepted, the first error is raised, as in vLLM.

    Raises:
        ValueError: a bad option, prefix caching switched off, a scheduler that is not ours, or a
            model folder that is missing or has no config.
        UnsupportedVLLMError: the installed vLLM is outside the supported range.

    With ``data_parallel_size=N``, which ``vllm.LLM`` refuses, or ``batchllm={"replicas": N}``, N engines share every batch: a
    :class:`ReplicatedLLM`.
    """

    def __new__(cls, model: str, *, batchllm: Any = None, **kwargs: Any) -> Self:
        number = num_replicas_of(batchllm, kwargs, is_tpu=current_platform.is_tpu())
        made: Any = ReplicatedLLM if number > 1 and cls is LLM else cls
        return object.__new__(made)  # type: ignore[no-any-return]

    def loglikelihood(
        self,
        contexts: Sequence[TextOrTokens],
        continuations: Sequence[TextOrTokens],
        *,
        add_special_tokens: bool = False,
        **kwargs: Any,
    ) -> list[Likelihood | FailedRequestOutput]:
        """How likely each continuation is behind its context.

        Contexts are computed once, however many continuations and other contexts share them, and pairs
        that are equal or differ in their last token only are one request.

        Args:
            contexts, continuations: texts or token ids, equally many. Behind an empty context the
                tokenizer's token for the beginning of a text is put, or that for its end.
            add_special_tokens: whether texts get the tokenizer's special tokens.
            **kwargs: ``use_tqdm``, ``lora_request`` and what else ``generate`` takes for all prompts.

        Returns:
            In the caller's order; a pair that is refused (an empty continuation, longer than the model
            takes, ...) has a :class:`FailedRequestOutput` in its place.

        Raises:
            ValueError: the lists differ in length, or not one pair could be accepted.
        """
        if len(contexts) != len(continuations):
            raise ValueError(
                f"{len(contexts)} contexts were given for {len(continuations)} continuations"
            )
        maker = self._pair_maker(add_special_tokens)
        results: list[Any] = [None] * len(contexts)
        pairs: dict[int, Pair] = {}
        for place, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
            try:
                pairs[place] = maker.pair(context, continuation)
            except ValueError as error:
                results[place] = FailedRequestOutput(str(place), context, error)
        if results and not pairs:
            raise results[0].error
        for place, result in self._score(pairs, **kwargs).items():
            results[place] = result
        return results

    def loglikelihood_rolling(
        self, texts: Sequence[TextOrTokens], *, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[Likelihood | FailedRequestOutput]:
        """How likely each text is as a whole: all its tokens behind those before them.

        A text that is longer than the model takes is scored in windows, every token once. Arguments,
        results and errors as in :meth:`loglikelihood`.
        """
        maker = self._pair_maker(add_special_tokens)
        results: list[Any] = [None] * len(texts)
        windows: list[tuple[int, Pair]] = []
        for place, text in enumerate(texts):
            try:
                windows += [(place, pair) for pair in maker.windows(text)]
            except ValueError as error:
                results[place] = FailedRequestOutput(str(place), text, error)
        if results and not windows:
            raise results[0].error
        scored = self._score({n: pair for n, (_, pair) in enumerate(windows)}, **kwargs)
        for number, (place, _) in enumerate(windows):
            results[place] = _joined(results[place], scored[number])
        return results

    def _pair_maker(self, add_special_tokens: bool) -> PairMaker:
        tokenizer = self.get_tokenizer()

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))

        return PairMaker(encode, prefix_token_of(tokenizer), int(self.model_config.max_model_len))

    def _score(self, pairs: dict[int, Pair], **kwargs: Any) -> dict[int, Any]:
        """Likelihoods, or failed outputs, of pairs by their places."""
        requests = scoring_requests(pairs)
        outputs = self.generate(
            [{"prompt_token_ids": request.prompt} for request in requests],
            [request.params() for request in requests],
            **kwargs,
        )
        return {
            place: _failure_of(output) or likelihood_of(pairs[place], output)
            for request, output in zip(requests, outputs, strict=True)
            for place in request.members
        }


class ReplicatedLLM(ReplicatedMethods, LLM):
    """``LLM`` over several engines, which Ray places; made by ``LLM(..., data_parallel_size=N)``.

    Same types and order of outputs, one ``report()``. What belongs to one engine alone is refused by name.

    Raises:
        ValueError: a bad option; no Ray, or no room for so many engines (`UsageError`).
        RuntimeError: no engine could load the model.
    """

    def __init__(self, model: str, *, batchllm: Any = None, **kwargs: Any) -> None:
        check_vllm_version()
        check_model_folder(model, kwargs.get("hf_config_path"))
        number = num_replicas_of(batchllm, kwargs, is_tpu=False)
        super().__init__(model, num_replicas=number, batchllm=batchllm, **kwargs)


def _failure_of(output: Any) -> FailedRequestOutput | None:
    """``output`` as a failure, whether it was refused or the engine has ended it; None if it is an answer."""
    if isinstance(output, FailedRequestOutput):
        return output
    if output.outputs[0].finish_reason not in ("error", "abort"):
        return None
    error = RuntimeError(
        f"the engine has ended request {output.request_id} with an error; its log says why"
    )
    return FailedRequestOutput(output.request_id, None, error)


def _joined(before: Any, window: Any) -> Any:
    """The likelihood of a text up to the end of ``window``, or the failure of a part of it."""
    if before is None or isinstance(window, FailedRequestOutput):
        return window
    if isinstance(before, FailedRequestOutput):
        return before
    values = (*before.token_logprobs, *window.token_logprobs)
    return Likelihood(sum(values), values, before.is_greedy and window.is_greedy)
