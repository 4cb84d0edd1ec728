# SPDX-License-Identifier: Apache-2.0
"""The methods of ``LLM`` where several engines stand behind it; `llm_ways` says which way each goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from tqdm import tqdm
from vllm.renderers.inputs.preprocess import conversation_to_seq, prompt_to_seq
from vllm.tokenizers import cached_tokenizer_from_config

from vllm_batchllm.offline.outputs import FailedRequestOutput
from vllm_batchllm.offline.report import BatchReport
from vllm_batchllm.offline.report_book import ReportBook
from vllm_batchllm.replicas.engine_pool import EnginePool
from vllm_batchllm.replicas.engine_worker import Asked
from vllm_batchllm.replicas.llm_of_all import MethodsOfAll
from vllm_batchllm.replicas.llm_options import for_one_engine
from vllm_batchllm.replicas.llm_report import merged_report
from vllm_batchllm.replicas.llm_ways import WAYS, NotWithReplicasError, Way
from vllm_batchllm.replicas.prompt_order import order_prompts


class ReplicatedMethods(MethodsOfAll):
    """In front of ``LLM`` among the bases of a class: takes over whatever would reach for its one engine."""

    def __init__(
        self, model: str, *, num_replicas: int, batchllm: Any = None, **kwargs: Any
    ) -> None:
        self.batchllm_config, own, options = for_one_engine(batchllm, kwargs, num_replicas)
        self._num_replicas, self._world_size = num_replicas, options.world_size
        self._model_name = model
        self._pool = EnginePool(model, own, options)
        (first, *_) = self._pool.ask_all("attribute", "model_config")
        self.model_config = first
        self.runner_type = first.runner_type
        self.supported_tasks = self._pool.ask_all("attribute", "supported_tasks")[0]
        self.chat_template = self._pool.ask_all("attribute", "chat_template")[0]
        self.default_sampling_params: dict[str, Any] | None = None
        self._numbers = count()
        self._queued: list[Asked] = []
        self._reports = ReportBook()

    # Each request by one of the engines.

    def enqueue(
        self,
        prompts: Any,
        sampling_params: Any = None,
        lora_request: Any = None,
        priority: Any = None,
        use_tqdm: Any = True,
        **options: Any,
    ) -> list[str]:
        """Queue prompts for `wait_for_completion`; returns their ids. Refusals come as outputs."""
        seq = prompt_to_seq(prompts)
        return self._enqueue("prompt", seq, sampling_params, lora_request, priority, options)

    def enqueue_chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        use_tqdm: Any = True,
        lora_request: Any = None,
        priority: Any = None,
        **options: Any,
    ) -> list[str]:
        """The same for conversations."""
        seq = conversation_to_seq(messages)
        return self._enqueue("chat", seq, sampling_params, lora_request, priority, options)

    def wait_for_completion(
        self, output_type: Any = None, *, use_tqdm: bool | Callable[..., Any] = True
    ) -> list[Any]:
        """Compute what is queued; outputs in the order in which it came."""
        queued, self._queued = self._queued, []
        outputs = self._compute(queued, use_tqdm)
        failed = [output for output in outputs if isinstance(output, FailedRequestOutput)]
        if failed and len(failed) == len(outputs):
            raise failed[0].error
        return outputs

    def generate(
        self,
        prompts: Any,
        sampling_params: Any = None,
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: Any = None,
        **options: Any,
    ) -> list[Any]:
        """See ``vllm.LLM.generate``."""
        self._check_generates("generate")
        self.enqueue(prompts, sampling_params, lora_request, priority, **options)
        return self.wait_for_completion(use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Any,
        sampling_params: Any = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Any = None,
        priority: Any = None,
        **options: Any,
    ) -> list[Any]:
        """See ``vllm.LLM.chat``."""
        self._check_generates("chat")
        self.enqueue_chat(
            messages, sampling_params, lora_request=lora_request, priority=priority, **options
        )
        return self.wait_for_completion(use_tqdm=use_tqdm)

    # In this process.

    def report(self, *, total: bool = False) -> BatchReport:
        """The report of the last finished batch, or with ``total`` of all since the engines started.

        Raises RuntimeError if none has run.
        """
        return self._reports.total() if total else self._reports.last()

    def get_tokenizer(self) -> Any:
        """A tokenizer like that of the engines."""
        return cached_tokenizer_from_config(self.model_config)

    def get_world_size(self, include_dp: bool = True) -> int:
        """Devices of all engines, or of one."""
        return self._world_size * (self._num_replicas if include_dp else 1)

    def __repr__(self) -> str:
        return f"LLM(model={self._model_name!r}, data_parallel_size={self._num_replicas})"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise NotWithReplicasError(name, self.__dict__.get("_num_replicas", 2))

    def _enqueue(
        self,
        kind: str,
        prompts: Sequence[Any],
        params: Any,
        lora_request: Any,
        priority: Any,
        options: Mapping[str, Any],
    ) -> list[str]:
        self._check_generates("enqueue")
        here: Any = self  # vLLM's own, which see that lengths agree
        params = here.get_default_sampling_params() if params is None else params
        rows = zip(
            prompts,
            here._params_to_seq(params, len(prompts)),
            here._lora_request_to_seq(lora_request, len(prompts)),
            here._priority_to_seq(priority, len(prompts)),
            strict=True,
        )
        first = len(self._queued)
        self._queued += [
            Asked(kind, prompt, each, {**options, "lora_request": lora, "priority": level})
            for prompt, each, lora, level in rows
        ]
        return [str(number) for number in range(first, len(self._queued))]

    def _compute(self, requests: list[Asked], use_tqdm: bool | Callable[..., Any]) -> list[Any]:
        outputs: list[Any] = [None] * len(requests)
        began_s = time.perf_counter()
        ordered = order_prompts(
            [request.prompt for request in requests],
            [getattr(request.params, "max_tokens", None) for request in requests],
            [getattr(request.options["lora_request"], "lora_name", "") for request in requests],
        )
        bar = _bar(use_tqdm, len(requests))

        def on_answer(place: int, output: Any) -> None:
            outputs[place] = output
            if bar is not None:
                bar.update(1)

        self._reports.begin()
        num_restarts = self._pool.serve(requests, ordered, on_answer)
        if bar is not None:
            bar.close()
        for output in outputs:
            output.request_id = str(next(self._numbers))
        num_failed = sum(isinstance(output, FailedRequestOutput) for output in outputs)
        makespan_s = time.perf_counter() - began_s
        self._reports.finished(
            lambda: merged_report(
                self._pool.books(),
                num_requests=len(outputs),
                num_failed=num_failed,
                makespan_s=makespan_s,
                num_replicas=self._num_replicas,
                num_restarts=num_restarts,
            )
        )
        return outputs

    def _check_generates(self, name: str) -> None:
        if self.runner_type != "generate":
            raise ValueError(f"LLM.{name}() is only supported for generative models.")


def _bar(use_tqdm: bool | Callable[..., Any], total: int) -> Any:
    if not use_tqdm:
        return None
    make = use_tqdm if callable(use_tqdm) else tqdm
    return make(total=total, desc="Processed prompts", dynamic_ncols=True)


def _refused(name: str) -> property:
    def refuse(self: Any) -> Any:
        raise NotWithReplicasError(name, self._num_replicas)

    return property(refuse)


for _name, _way in WAYS.items():
    if _way is Way.REFUSED:
        setattr(ReplicatedMethods, _name, _refused(_name))
