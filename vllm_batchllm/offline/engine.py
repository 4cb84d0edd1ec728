# SPDX-License-Identifier: Apache-2.0
"""One engine that serves whole batches: vLLM's ``LLM``, run by our scheduler.

What it adds: the whole batch is queued before the first step, or as much as comes soon; exact duplicates are computed
once, a bad request fails alone, and ``report()`` tells what was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from vllm import LLM as StockLLM

from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.log import get_logger
from vllm_batchllm.offline.arguments import check_model_folder, put_options
from vllm_batchllm.offline.batch import Batch
from vllm_batchllm.offline.engine_core import call_core, held, withdraw
from vllm_batchllm.offline.head_start import HeadStart
from vllm_batchllm.offline.intake import Intake, Unrenderable
from vllm_batchllm.offline.progress import BatchProgress
from vllm_batchllm.offline.report import BatchReport, make_report
from vllm_batchllm.offline.report_book import ReportBook
from vllm_batchllm.plugin.registration import register
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.stats.counters import ScheduleCounters

logger = get_logger(__name__)


class OfflineEngine(StockLLM):
    """``vllm.LLM`` with a whole batch in sight; what it promises is said at :class:`LLM`."""

    def __init__(
        self,
        model: str,
        *,
        batchllm: BatchLLMConfig | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        vllm_version.check_vllm_version()
        check_model_folder(model, kwargs.get("hf_config_path"))
        register()  # the config checks, where plugin loading was restricted
        self.batchllm_config = put_options(batchllm, kwargs)
        self._batch: Batch | None = None
        """What was queued since the last run of the engine, which takes it."""
        self._intake: Intake | None = None
        """What takes requests now, and their failures; None but while a call queues its own."""
        self._reports = ReportBook()
        super().__init__(model, **kwargs)

    def report(self, *, total: bool = False) -> BatchReport:
        """The report of the last finished batch, or with ``total`` of all since the engine started.

        Raises RuntimeError if none has run.
        """
        return self._reports.total() if total else self._reports.last()

    # Queueing: vLLM's own methods, with the engine held and errors kept per request.

    def _add_completion_requests(self, *args: Any, **kwargs: Any) -> list[str]:
        with self._queueing():
            return list(super()._add_completion_requests(*args, **kwargs))

    def _add_chat_requests(self, *args: Any, **kwargs: Any) -> list[str]:
        with self._queueing():
            return list(super()._add_chat_requests(*args, **kwargs))

    def _run_completion(self, *args: Any, **kwargs: Any) -> list[Any]:
        with self._waiting_for_outputs():
            return list(super()._run_completion(*args, **kwargs))

    def _run_chat(self, *args: Any, **kwargs: Any) -> list[Any]:
        with self._waiting_for_outputs():
            return list(super()._run_chat(*args, **kwargs))

    def _preprocess_cmpl_one(self, prompt: Any, *args: Any, **kwargs: Any) -> Any:
        return self._render(super()._preprocess_cmpl_one, prompt, *args, **kwargs)

    def _preprocess_chat_one(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        return self._render(super()._preprocess_chat_one, conversation, *args, **kwargs)

    def _render(self, render: Callable[..., Any], prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if self._intake is None:
            return render(prompt, *args, **kwargs)
        try:
            return render(prompt, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - kept for this request, raised or shown later
            return Unrenderable(prompt, error)

    def _render_and_add_requests(
        self,
        prompts: Iterable[Any],
        params: Sequence[Any],
        *,
        lora_requests: Sequence[Any] | None = None,
        priorities: Sequence[int] | None = None,
    ) -> list[str]:
        if self._intake is None:
            added: list[str] = super()._render_and_add_requests(
                prompts, params, lora_requests=lora_requests, priorities=priorities
            )
            return added
        batch = self._intake.batch
        batch.num_expected += len(params)
        taken = self._intake.take(prompts, params, lora_requests, priorities)
        if batch.lookahead is None:
            return list(taken)
        batch.backlog = taken
        return self._feed(batch)

    def _feed(self, batch: Batch) -> list[str]:
        """Queue from the backlog until the look-ahead is full; returns the ids."""
        if batch.backlog is None or batch.lookahead is None:
            return []
        ids = []
        with self._taking(self._intake_into(batch)):
            while self.llm_engine.get_num_unfinished_requests() < batch.lookahead:
                request_id = next(batch.backlog, None)
                if request_id is None:
                    batch.backlog = None
                    break
                ids.append(request_id)
        return ids

    # Running: a loop over LLMEngine.step that answers duplicates and refills the look-ahead.

    def _run_engine(
        self, output_type: Any, *, use_tqdm: bool | Callable[..., Any] = True
    ) -> list[Any]:
        batch, self._batch = self._batch, None
        if batch is None:
            return list(super()._run_engine(output_type, use_tqdm=use_tqdm))
        start_s = time.perf_counter()
        try:
            with BatchProgress(use_tqdm, batch.num_expected) as progress:
                outputs = self._run_batch(batch, progress)
        except BaseException:
            self.llm_engine.abort_request(sorted(batch.engine_ids), internal=True)
            raise
        after = call_core(self.llm_engine, "batchllm_counters")
        counters = ScheduleCounters.between(batch.before, after)
        makespan_s = time.perf_counter() - start_s
        self._reports.finished(lambda: _report_of(batch, counters, makespan_s))
        return sorted(outputs, key=lambda output: int(output.request_id))

    def _run_batch(self, batch: Batch, progress: BatchProgress) -> list[Any]:
        outputs: list[Any] = []
        while self.llm_engine.has_unfinished_requests() or batch.backlog is not None:
            if self.llm_engine.has_unfinished_requests():
                for output in self.llm_engine.step():
                    if output.finished:
                        outputs += batch.finish(output)
            self._feed(batch)
            outputs += batch.take_ready()
            progress.show(batch)
            if not self.llm_engine.has_unfinished_requests() and batch.backlog is None:
                self._stand_in(batch)
        for failure in batch.failures:
            outputs += batch.finish(failure)
        progress.show(batch)
        if len(outputs) != batch.num_expected:
            logger.warning(
                "%d of %d requests ended without an output; were they aborted?",
                batch.num_expected - len(outputs),
                batch.num_expected,
            )
        return outputs

    def _stand_in(self, batch: Batch) -> None:
        """Compute what was to be answered by requests that were aborted."""
        for orphans in batch.take_orphans():
            prompt, params, priority = orphans.engine_input
            batch.stand_in(self._add_request(prompt, params, priority=priority), orphans)

    @contextmanager
    def _waiting_for_outputs(self) -> Iterator[None]:
        """A call that waits for its outputs, so that look-ahead may hold requests back.

        It ends with the call, however that ends: a later ``enqueue`` has nobody to feed its backlog.
        """
        if not self._generates:
            yield
            return
        batch = self._open_batch()
        batch.lookahead = self.batchllm_config.lookahead
        try:
            yield
        finally:
            batch.lookahead = None

    @property
    def _head_start_s(self) -> float | None:
        """None where several schedulers must decide alike: no clock may tell them what they see."""
        parallel = self.llm_engine.vllm_config.parallel_config
        is_one_of_many = parallel.distributed_executor_backend == "external_launcher"
        return None if is_one_of_many else self.batchllm_config.head_start_s

    @property
    def _generates(self) -> bool:
        return bool(self.model_config.runner_type == "generate")

    def _open_batch(self) -> Batch:
        if self._batch is None:
            self._batch = Batch(before=call_core(self.llm_engine, "batchllm_counters"))
        return self._batch

    def _intake_into(self, batch: Batch, queued: Callable[[], None] = lambda: None) -> Intake:
        return Intake(
            batch,
            self._add_request,
            lambda: next(self.request_counter),
            lambda: withdraw(self.llm_engine, str(self.request_counter.counter - 1)),
            self._resolve_mm_lora,
            self.batchllm_config.dedupe,
            queued,
        )

    @contextmanager
    def _queueing(self) -> Iterator[None]:
        """A call queues requests; if it fails, nothing of this call is left in the engine."""
        if not self._generates:
            yield
            return
        batch = self._open_batch()
        batch.begin_call()
        try:
            with held(self.llm_engine) as begin:
                head_start = HeadStart(begin, self._head_start_s)
                with self._taking(self._intake_into(batch, head_start.queued)):
                    yield
        except BaseException:
            self.llm_engine.abort_request(batch.undo_call(), internal=True)
            batch.backlog = None
            if not batch.num_expected:
                self._batch = None
            raise

    @contextmanager
    def _taking(self, intake: Intake) -> Iterator[None]:
        before, self._intake = self._intake, intake
        try:
            yield
        finally:
            self._intake = before


def _report_of(batch: Batch, counters: ScheduleCounters, makespan_s: float) -> BatchReport:
    """The report of a finished batch. Looks for what could have been saved at best, O(prompt tokens)."""
    return make_report(
        counters,
        optimal_saved_tokens=optimal_saved_tokens(
            batch.tokens, int(counters.hash_block_size), batch.namespaces, batch.limits
        ),
        num_requests=batch.num_finished,
        num_failed=len(batch.failures),
        num_duplicates=batch.num_duplicates,
        output_tokens=batch.output_tokens,
        makespan_s=makespan_s,
        num_unshared=batch.num_unshared,
    )
