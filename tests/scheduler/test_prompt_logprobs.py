# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of a prompt whose beginning came from the cache: real schedulers, vLLM's front end.

The worker keeps rows as vLLM's two model runners do. V1 has a table for the whole prompt, of which it fills
what it computes: here the rest is poison. V2 has a list of the rows that it computed since the request
came or came back. Every value is a hash of the tokens before its position, so a value that was moved is a wrong one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_engine import make_request, make_vllm_config, model_folder
from fake_worker import FakeWorker, Row
from hypothesis import given, settings
from hypothesis import strategies as st
from pooled import BLOCK_SIZE, KV_GROUPS, make
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import LogprobsTensors, ModelRunnerOutput

from vllm_batchllm.plugin.prompt_logprobs import StartedLogprobsProcessor, mark_start
from vllm_batchllm.prefix.readable import MARK, START, unplaceable_start
from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

POISON = -700186016


def value_at(row: Row, position: int) -> float:
    """What the model thinks of the token at ``position``, from what comes before it."""
    return float(row.prefixes[position] % 100_003)


class ScoringWorker(FakeWorker):
    """A worker that scores prompts as model runner V1 or V2."""

    def __init__(self, *args: Any, prompts: dict[str, list[int]], is_v2: bool) -> None:
        super().__init__(*args)
        self.prompts = dict(prompts)
        self.is_v2 = is_v2
        self.pending: dict[str, Any] = {}
        self.num_lost = 0

    def execute(self, output: SchedulerOutput) -> ModelRunnerOutput:
        starts = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        starts |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        if self.is_v2:
            for request_id in output.preempted_req_ids or ():
                self.num_lost += self.pending.pop(request_id, None) is not None
        result = super().execute(output)
        result.prompt_logprobs_dict = {
            request_id: rows
            for request_id, start in starts.items()
            if (rows := self._score(request_id, start, output.num_scheduled_tokens[request_id]))
        }
        return result

    def _score(self, request_id: str, start: int, num_tokens: int) -> LogprobsTensors | None:
        prompt = self.prompts.get(request_id)
        if prompt is None or start >= len(prompt):
            return None
        row, last = self.rows[request_id], len(prompt) - 1
        ends = start + num_tokens >= len(prompt)
        values = [value_at(row, r + 1) for r in range(start, min(start + num_tokens, last))]
        if self.is_v2:
            rows = self.pending.setdefault(request_id, [])
            rows += zip(prompt[start + 1 :], values, strict=False)
        else:
            rows = self.pending.setdefault(request_id, [(POISON, float("nan"))] * last)
            rows[start : start + len(values)] = zip(prompt[start + 1 :], values, strict=False)
        if not ends:
            return None
        del self.pending[request_id], self.prompts[request_id]
        return tensors_of(rows)


def tensors_of(rows: list[tuple[int, float]]) -> LogprobsTensors:
    tokens, values = [token for token, _ in rows], [value for _, value in rows]
    return LogprobsTensors(
        torch.tensor(tokens, dtype=torch.int64).reshape(-1, 1),
        torch.tensor(values, dtype=torch.float64).reshape(-1, 1),
        torch.ones(len(rows), dtype=torch.int64),
    )


@st.composite
def scored_prompts(draw: st.DrawFn) -> list[tuple[list[int], int | None]]:
    """Prompts that share much, each with a start, or without log-probabilities."""
    heads = draw(st.lists(st.lists(st.integers(1, 3), max_size=22), min_size=1, max_size=3))
    scored = []
    for _ in range(draw(st.integers(1, 10))):
        prompt = draw(st.sampled_from(heads)) + draw(
            st.lists(st.integers(1, 5), min_size=1, max_size=12)
        )
        scored.append((prompt, draw(st.none() | st.integers(0, len(prompt) - 1))))
    return scored


def serve(
    scheduler: Any, worker: ScoringWorker, processors: dict[str, StartedLogprobsProcessor]
) -> list[int]:
    """Run to the end; the front end gets what comes. Returns the hits at each start of a request."""
    hits = []
    for _ in range(3000):
        output = scheduler.schedule()
        hits += [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
        cached = output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        hits += [(each, computed[each]) for each in cached.resumed_req_ids]
        for core_outputs in scheduler.update_from_output(output, worker.execute(output)).values():
            for core_output in core_outputs.outputs:
                if core_output.request_id in processors:
                    processors[core_output.request_id].update_from_output(core_output)
        if not scheduler.has_unfinished_requests():
            return hits
    raise AssertionError("requests wait for ever")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_folder(tmp_path_factory.mktemp("llama"))


def run(
    folder: str,
    scored: list[tuple[list[int], int | None]],
    *,
    is_v2: bool,
    kind: str = "full",
    num_blocks: int = 40,
    step_tokens: int = 64,
    flat: bool = False,
    max_tokens: int = 2,
    admission: str = "future",
) -> tuple[Any, Any, list[tuple[str, int]]]:
    """Serve ``scored`` and check every value by its position; scheduler, worker and hits."""
    config = make_vllm_config(
        folder,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_num_batched_tokens=step_tokens,
        max_num_seqs=8,
        options={"admission": admission},
    )
    specs = KV_GROUPS[kind]
    scheduler = make(BatchLLMScheduler, config, specs)
    starts = {str(n): start for n, (_, start) in enumerate(scored)}
    prompts = {str(n): prompt for n, (prompt, start) in enumerate(scored) if start is not None}
    worker = ScoringWorker(specs, lambda _: None, prompts=prompts, is_v2=is_v2)
    processors = {}
    for number, (prompt, start) in enumerate(scored):
        sampling: dict[str, Any] = {"flat_logprobs": flat}
        if start is not None:
            sampling |= {"prompt_logprobs": 0, "extra_args": {START: start}}
        request = make_request(
            str(number), prompt, block_size=BLOCK_SIZE, sampling=sampling, max_tokens=max_tokens
        )
        if start is not None:
            processors[str(number)] = StartedLogprobsProcessor.from_new_request(None, request)
            request.skip_reading_prefix_cache = request.get_skip_reading_prefix_cache()
        scheduler.add_request(request)
    rows = {}
    for number, (prompt, _) in enumerate(scored):
        rows[str(number)] = Row(0, [])
        rows[str(number)].replace(prompt)
    hits = serve(scheduler, worker, processors)
    for request_id, processor in processors.items():
        check_answer(processor, prompts[request_id], starts[request_id], rows[request_id])
    for request_id, num_hits in hits:
        start = starts[request_id]
        assert start is None or num_hits <= max(start - 1, 0), (
            "the row of a value came from the cache"
        )
    return scheduler, worker, hits


def check_answer(
    processor: StartedLogprobsProcessor, prompt: list[int], start: int | None, row: Row
) -> None:
    """None before the start, and from it on what a run without cache would give."""
    assert start is not None
    answer = processor.prompt_logprobs
    assert answer is not None and len(answer) == len(prompt)
    for position, token in enumerate(prompt):
        found = answer[position]
        if position < max(start, 1):
            assert not found, "there is a value before the start"
            continue
        assert set(found) == {token}
        assert found[token].logprob == value_at(row, position)


@given(scored=scored_prompts(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_value_stands_at_its_position(
    folder: str, scored: list[tuple[list[int], int | None]], data: st.DataObject
) -> None:
    run(
        folder,
        scored,
        is_v2=data.draw(st.booleans()),
        kind=data.draw(st.sampled_from(["full", "full + sliding window"])),
        num_blocks=data.draw(st.integers(24, 60)),
        step_tokens=data.draw(st.sampled_from([8, 16, 64])),
        flat=data.draw(st.booleans()),
        max_tokens=data.draw(st.integers(1, 20)),
        admission=data.draw(st.sampled_from(["future", "stock"])),
    )


@pytest.mark.parametrize("is_v2", [False, True])
def test_preempted_in_the_middle_of_a_prompt(folder: str, is_v2: bool) -> None:
    shared = [1, 2, 3, 1] * 3
    scored = [([*shared, 4, n, n, 5, 5, 4, 5], len(shared)) for n in range(1, 6)] * 2
    scheduler, worker, _ = run(
        folder, scored, is_v2=is_v2, num_blocks=20, step_tokens=8, max_tokens=24, admission="stock"
    )
    assert scheduler.batchllm_counters.num_preemptions > 0
    assert worker.num_lost > 0 or not is_v2, "nobody was sent back before its prompt was complete"


def test_what_lies_before_the_start_is_read_from_the_cache(folder: str) -> None:
    context = list(range(1, 41))
    scored = [([*context, 50 + n, 60 + n], len(context)) for n in range(8)]
    scheduler, _, hits = run(folder, scored, is_v2=False, num_blocks=200)
    assert [num for _, num in hits] == [0] + [36] * 7  # 39 tokens may come from it, in whole blocks
    for group_queue in scheduler.waiting.group_queues:
        group_queue.check_integrity()


def test_without_a_start_nothing_is_read(folder: str) -> None:
    config = make_vllm_config(folder, block_size=BLOCK_SIZE)
    scheduler = make(BatchLLMScheduler, config, KV_GROUPS["full"])
    for number in range(3):
        request = make_request(
            str(number), range(40), block_size=BLOCK_SIZE, sampling={"prompt_logprobs": 1}
        )
        assert mark_start(request) is None
        scheduler.add_request(request)
    worker = ScoringWorker(KV_GROUPS["full"], lambda _: None, prompts={}, is_v2=False)
    assert {num for _, num in serve(scheduler, worker, {})} == {0}


def request_with(extra_args: dict[str, Any] | None, **fields: Any) -> Any:
    """What the front end hands on of a request with a prompt of ten tokens."""
    sampling = {"prompt_logprobs": 1, "extra_args": extra_args} | fields.pop("sampling", {})
    defaults = {"prompt_token_ids": list(range(10)), "resumable": False}
    return SimpleNamespace(sampling_params=SamplingParams(**sampling), **defaults | fields)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"extra_args": {START: 10}}, "lies beyond the prompt of 10 tokens"),
        ({"extra_args": {START: -1}}, "-1 is not allowed"),
        ({"extra_args": {START: 2.0}}, "2.0 is not allowed"),
        ({"extra_args": {START: "3"}}, "'3' is not allowed"),
        ({"extra_args": {START: True}}, "True is not allowed"),
        (
            {"extra_args": {START: 3}, "sampling": {"prompt_logprobs": None}},
            "without prompt_logprobs",
        ),
        ({"extra_args": {START: 3}, "prompt_token_ids": None}, "prompt embeddings"),
        ({"extra_args": {START: 3}, "resumable": True}, "streaming sessions"),
        ({"extra_args": {MARK: 9}}, "is set by the engine"),
    ],
)
def test_a_bad_start_is_refused_by_name(fields: dict[str, Any], part: str) -> None:
    with pytest.raises(VLLMValidationError, match=part):
        mark_start(request_with(fields.pop("extra_args"), **fields))


@pytest.mark.parametrize(("start", "limit"), [(0, 0), (1, 0), (2, 1), (9, 8)])
def test_the_mark_is_what_may_come_from_the_cache(start: int, limit: int) -> None:
    mine = {START: start}
    request = request_with(mine)
    assert mark_start(request) == start
    assert request.sampling_params.extra_args[MARK] == limit
    assert mine == {START: start}, "the caller's own dictionary was written to"


def test_scored_ids_keep_their_first_row(folder: str) -> None:
    params = SamplingParams(extra_args={START: 8}, max_tokens=1)
    params.prompt_logprob_token_ids, params.prompt_logprob_start = [[1]] * 4, 5
    request = SimpleNamespace(
        sampling_params=params, prompt_token_ids=list(range(10)), resumable=False
    )
    assert mark_start(request) == 8
    assert params.extra_args is not None and params.extra_args[MARK] == 5


def test_a_front_end_that_does_not_know_the_start_is_told(folder: str) -> None:
    config = make_vllm_config(folder, block_size=BLOCK_SIZE)
    scheduler = make(BatchLLMScheduler, config, KV_GROUPS["full"])
    sampling = {"prompt_logprobs": 1, "extra_args": {START: 3}}
    scheduler.add_request(make_request("a", range(9), block_size=BLOCK_SIZE, sampling=sampling))
    worker = ScoringWorker(KV_GROUPS["full"], lambda _: None, prompts={}, is_v2=False)
    output = scheduler.schedule()
    result = scheduler.update_from_output(output, worker.execute(output))
    assert str(result[0].outputs[-1].finish_reason) == "error"


def test_pipelines_are_refused_by_name() -> None:
    request = request_with({START: 3})
    mark_start(request)
    assert unplaceable_start(request.sampling_params, 1) is None
    assert "pipeline" in (unplaceable_start(request.sampling_params, 2) or "")
