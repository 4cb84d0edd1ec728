# SPDX-License-Identifier: Apache-2.0
"""Taking requests into the engine, one by one: computed, answered as a duplicate, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from vllm.exceptions import VLLMServerError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from vllm_batchllm.admission.never_served import problem_of
from vllm_batchllm.log import get_logger
from vllm_batchllm.offline.batch import Batch
from vllm_batchllm.offline.duplicates import may_share_answer
from vllm_batchllm.offline.outputs import FailedRequestOutput

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Unrenderable:
    """A prompt that could not be rendered, in the place of its engine input."""

    prompt: Any
    error: Exception


@dataclass(frozen=True, slots=True)
class Intake:
    """Queues the requests of one call.

    add_request: vLLM's ``_add_request``; returns the engine's id of the request.
    next_id: the next number of vLLM's request counter. withdraw: takes out of the engine what is left
    of the request with the latest number, which failed. resolve_lora: vLLM's ``_resolve_mm_lora``, the
    adapter of a prompt with images or sound. queued: told of each request that the engine has got.
    """

    batch: Batch
    add_request: Callable[..., str]
    next_id: Callable[[], int]
    withdraw: Callable[[], None]
    resolve_lora: Callable[[Any, Any], Any]
    dedupe: bool
    queued: Callable[[], None]

    def take(
        self,
        prompts: Iterable[Any],
        params: Sequence[Any],
        lora_requests: Sequence[Any] | None,
        priorities: Sequence[int] | None,
    ) -> Iterator[str]:
        """Queue one request at a time and yield its id.

        Raises:
            Exception: the first refusal, if not one request of the call could be accepted.
        """
        num_failed_before = len(self.batch.failures)
        num_taken = 0
        rows = zip(
            prompts, params, lora_requests or repeat(None), priorities or repeat(0), strict=False
        )
        for prompt, each_params, lora_request, priority in rows:
            num_taken += 1
            yield self._take_one(prompt, each_params, lora_request, priority)
        failed = self.batch.failures[num_failed_before:]
        if failed and len(failed) == num_taken:
            del self.batch.failures[num_failed_before:]
            raise failed[0].error
        if failed:
            logger.warning(
                "%d of %d requests were refused and the others go on; the first: request %s: %s",
                len(failed),
                num_taken,
                failed[0].request_id,
                failed[0].error,
            )

    def _take_one(self, prompt: Any, params: Any, lora_request: Any, priority: int) -> str:
        if isinstance(prompt, Unrenderable):
            return self._refuse(prompt.prompt, prompt.error)
        try:
            lora_request = self.resolve_lora(prompt, lora_request)
        except Exception as error:  # noqa: BLE001 - kept for this request
            return self._refuse(prompt.get("prompt"), error)
        shareable = self.dedupe and may_share_answer(prompt, params, lora_request)
        if shareable:
            params.output_kind = RequestOutputKind.FINAL_ONLY  # as the leader's, to compare equal
            leader_id = self.batch.duplicates.leader(prompt, params, priority)
            if leader_id is not None:
                request_id = str(self.next_id())
                self.batch.follow(leader_id, request_id, (prompt, params, priority))
                return request_id
        problem = problem_of(
            len(prompt.get("prompt_token_ids") or ()),
            getattr(params, "extra_args", None),
            int(self.batch.before["max_tokens_held"]),
        )
        if problem is not None:
            return self._refuse(prompt.get("prompt"), VLLMValidationError(problem))
        try:
            engine_id = self.add_request(
                prompt, params, lora_request=lora_request, priority=priority
            )
        except VLLMServerError:
            raise
        except BaseException as error:
            self.withdraw()
            if not isinstance(error, Exception):  # the user has interrupted
                raise
            return self._refuse(prompt.get("prompt"), error)
        self.batch.queued(engine_id, prompt, lora_request, params)
        self.queued()
        if shareable:
            caller_id = engine_id.partition("-")[0]
            self.batch.duplicates.add(prompt, params, priority, caller_id)
        return engine_id

    def _refuse(self, prompt: Any, error: Exception) -> str:
        request_id = str(self.next_id())
        self.batch.failures.append(FailedRequestOutput(request_id, prompt, error))
        return request_id
