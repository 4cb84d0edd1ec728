# SPDX-License-Identifier: Apache-2.0
"""The drop-in LLM on a real model: same answers as vLLM, in the caller's order, fewer tokens."""

from __future__ import annotations

import dataclasses
import random
from pydoc_data.topics import topics
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput

from vllm_batchllm import BatchReport
from vllm_batchllm.offline.outputs import FailedRequestOutput

QUESTIONS = (
    "What is this about?",
    "Name one keyword.",
    "Is it about classes?",
    "Give an example.",
)


def document_questions(num_documents: int = 6, length: int = 1200, seed: int = 3) -> list[str]:
    """Shuffled questions about CPython's help topics."""
    names = sorted(topics)[:num_documents]
    prompts = [
        f"{topics[name][:length]}\n\nQuestion: {question}\nAnswer:"
        for name in names
        for question in QUESTIONS
    ]
    random.Random(seed).shuffle(prompts)
    return prompts


def greedy(max_tokens: int = 8, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, **more)


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[list(each.token_ids) for each in output.outputs] for output in outputs]


def generate(llm: Any, prompts: Any, params: Any, **more: Any) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False, **more)


def test_answers_are_stocks_and_nothing_is_computed_twice(stock, ours) -> None:
    prompts = document_questions()
    expected = generate(stock, prompts, greedy())
    outputs = generate(ours, prompts, greedy())
    assert tokens(outputs) == tokens(expected)
    assert [o.prompt for o in outputs] == prompts
    assert [o.outputs[0].text for o in outputs] == [o.outputs[0].text for o in expected]
    assert {type(o) for o in outputs} == {RequestOutput}
    report = ours.report()
    assert report.reuse_efficiency >= 0.999
    stock_saved = sum(o.num_cached_tokens for o in expected) / report.prompt_tokens
    assert report.saved_ratio > 1.25 * stock_saved, "the cache is not under pressure"


def test_the_report_agrees_with_the_outputs(ours) -> None:
    outputs = generate(ours, document_questions(num_documents=3), greedy())
    report: BatchReport = ours.report()
    prompt_tokens = sum(len(o.prompt_token_ids) for o in outputs)
    assert report.num_requests == len(outputs) and report.num_failed == 0
    assert report.prompt_tokens == prompt_tokens
    assert report.output_tokens == sum(len(o.outputs[0].token_ids) for o in outputs)
    cached = sum(o.num_cached_tokens for o in outputs)
    assert report.admission_saved_ratio == pytest.approx(cached / prompt_tokens)
    assert report.saved_ratio == pytest.approx(1 - report.computed_prompt_tokens / prompt_tokens)
    # every decode step computes one token beside the prompt tokens
    computed = report.computed_prompt_tokens + report.output_tokens - len(outputs)
    assert report.steps * report.tokens_per_step == pytest.approx(computed)
    assert 0 < report.plan_s < report.makespan_s and 0 < report.plan_share < 1
    text = str(report)
    assert f"{report.saved_ratio:.1%}" in text and "reuse efficiency" in text
    assert report.to_dict()["reuse_efficiency"] == report.reuse_efficiency


def test_chat_answers_as_stock_does(stock, ours) -> None:
    conversations = [
        [{"role": "user", "content": f"What is the capital of {country}?"}]
        for country in ("France", "Italy", "Japan")
    ]
    expected = stock.chat(conversations, greedy(12), use_tqdm=False)
    outputs = ours.chat(conversations, greedy(12), use_tqdm=False)
    assert tokens(outputs) == tokens(expected)
    assert "Paris" in outputs[0].outputs[0].text


def test_enqueue_and_wait_for_completion(stock, ours) -> None:
    prompts = document_questions(num_documents=2)
    expected = generate(stock, prompts, greedy(4))
    first = ours.enqueue(prompts[:3], greedy(4), use_tqdm=False)
    second = ours.enqueue(prompts[3:], greedy(4), use_tqdm=False)
    outputs = ours.wait_for_completion(use_tqdm=False)
    assert tokens(outputs) == tokens(expected)
    assert [name.partition("-")[0] for name in first + second] == [o.request_id for o in outputs]
    assert ours.wait_for_completion(use_tqdm=False) == []


def test_several_samples_logprobs_and_stop_strings_match_stock(stock, ours) -> None:
    prompts = document_questions(num_documents=2)[:4]
    for params in (
        greedy(6, logprobs=2),
        greedy(6, prompt_logprobs=1),
        greedy(12, stop=["the"]),
        SamplingParams(n=2, temperature=0.8, seed=5, max_tokens=5),
    ):
        expected, outputs = (generate(llm, prompts, params) for llm in (stock, ours))
        assert tokens(outputs) == tokens(expected)
        assert [o.outputs[0].finish_reason for o in outputs] == [
            o.outputs[0].finish_reason for o in expected
        ]


def test_an_empty_batch_is_an_empty_answer(stock, ours) -> None:
    assert generate(ours, [], greedy()) == generate(stock, [], greedy()) == []


def test_one_bad_request_fails_alone(ours) -> None:
    good = document_questions(num_documents=1)[:2]
    outputs = generate(ours, [good[0], "", "word " * 900, good[1]], greedy(3))
    assert [type(o) for o in outputs] == [
        RequestOutput,
        FailedRequestOutput,
        FailedRequestOutput,
        RequestOutput,
    ]
    empty, too_long = outputs[1], outputs[2]
    assert "empty" in str(empty.error)
    assert "768" in too_long.outputs[0].stop_reason and too_long.prompt == "word " * 900
    assert {o.outputs[0].finish_reason for o in (empty, too_long)} == {"error"}
    assert all(len(o.outputs[0].token_ids) == 3 for o in (outputs[0], outputs[3]))
    assert ours.report().num_failed == 2 and ours.report().num_requests == 4


@pytest.mark.parametrize("num_samples", [1, 3])
def test_a_request_that_fails_late_leaves_nothing_in_the_engine(ours, num_samples) -> None:
    """vLLM registers it, then its engine core refuses a tuple of tokens."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=3, n=num_samples)
    late: dict[str, Any] = {"prompt_token_ids": (5, 6, 7)}
    outputs = generate(ours, [{"prompt_token_ids": [5, 6, 7, 8]}, late], params)
    assert [type(output) for output in outputs] == [RequestOutput, FailedRequestOutput]
    assert "tuple" in str(outputs[1].error), "the words of the engine core"
    assert [len(each.token_ids) for each in outputs[0].outputs] == [3] * num_samples
    processor = ours.llm_engine.output_processor
    assert not processor.request_states and not processor.parent_requests
    assert not processor.external_req_ids


def test_an_interrupt_while_a_request_is_added_leaves_nothing_in_the_engine(
    ours, monkeypatch
) -> None:
    core = ours.llm_engine.engine_core
    add, sent = core.add_request, []

    def interrupted(request: Any) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(request)
        add(request)

    with monkeypatch.context() as patched:
        patched.setattr(core, "add_request", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(ours, document_questions(num_documents=1), greedy(3))
    processor = ours.llm_engine.output_processor
    assert len(sent) == 2
    assert not processor.request_states and not processor.external_req_ids
    assert len(generate(ours, "Hello", greedy(2))) == 1


def test_a_look_ahead_ends_with_its_call_even_if_that_fails_at_once(ours, monkeypatch) -> None:
    """What is enqueued afterwards is all in the engine, and none of it waits to be fed."""
    ours.batchllm_config = dataclasses.replace(ours.batchllm_config, lookahead=1)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("before anything is queued")

    with monkeypatch.context() as patched:
        patched.setattr(type(ours), "_add_completion_requests", fails)
        with pytest.raises(RuntimeError, match="before anything is queued"):
            generate(ours, ["a", "b"], greedy(2))
    prompts = document_questions(num_documents=2)
    for first in (0, 4):
        ours.enqueue(prompts[first : first + 4], greedy(2), use_tqdm=False)
    assert len(ours.wait_for_completion(use_tqdm=False)) == 8


def test_a_bad_hint_fails_alone_and_a_good_one_is_used(ours) -> None:
    prompts = document_questions(num_documents=1)[:3]
    params = [
        SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, extra_args=hints)
        for hints in (None, {"expected_output_tokens": "4"}, {"expected_output_tokens": 4})
    ]
    outputs = generate(ours, prompts, params)
    assert [type(o) for o in outputs] == [RequestOutput, FailedRequestOutput, RequestOutput]
    assert "'expected_output_tokens' = '4' is not allowed" in str(outputs[1].error)
    report = ours.report()
    assert report.num_failed == 1 and report.num_needed_lost == 0
    assert 0 < report.kv_peak_ratio <= 1


@pytest.mark.parametrize("prompt", ["", "word " * 900, {"prompt_token_ids": [10**9]}])
def test_a_bad_request_alone_raises_what_stock_raises(stock, ours, prompt) -> None:
    with pytest.raises(Exception) as expected:
        generate(stock, prompt, greedy(3))
    with pytest.raises(type(expected.value), match=r".") as raised:
        generate(ours, prompt, greedy(3))
    assert str(raised.value) == str(expected.value)
    assert len(generate(ours, "Hello", greedy(3))) == 1, "the engine goes on"


def test_max_tokens_outside_the_context(stock, ours) -> None:
    with pytest.raises(VLLMValidationError, match="max_tokens must be at least 1, got 0"):
        greedy(0)
    prompts = ["word " * 700, "word " * 720]
    expected, outputs = (
        generate(llm, prompts, greedy(5000, ignore_eos=True)) for llm in (stock, ours)
    )
    assert tokens(outputs) == tokens(expected)
    assert all(len(o.prompt_token_ids) + len(o.outputs[0].token_ids) == 768 for o in outputs), (
        "stops at the end of the context, as stock does"
    )


def test_mismatched_parameters_are_refused_and_leave_nothing_behind(ours) -> None:
    with pytest.raises(VLLMValidationError, match="must be the same"):
        generate(ours, ["a", "b"], [greedy()])
    assert len(generate(ours, ["a", "b"], greedy(2))) == 2


def test_exact_duplicates_are_computed_once_and_answered_separately(stock, ours) -> None:
    prompts = document_questions(num_documents=2)[:4] * 3
    expected = generate(stock, prompts, greedy())
    outputs = generate(ours, prompts, greedy())
    assert tokens(outputs) == tokens(expected)
    assert [int(o.request_id) for o in outputs] == sorted({int(o.request_id) for o in outputs})
    for output in outputs:  # as a rollout loop closes its sequences
        output.outputs[0].token_ids.append(2)
    assert tokens(outputs) == [[[*sample, 2] for sample in each] for each in tokens(expected)]
    assert (ours.report().num_duplicates, ours.report().num_requests) == (8, 12)


def test_what_could_differ_is_computed_separately(ours) -> None:
    prompts = ["The sky is"] * 4
    for params in (
        SamplingParams(temperature=1.0, max_tokens=4),
        [greedy(n + 1) for n in range(4)],
        [greedy(4, stop=[str(n)]) for n in range(4)],
    ):
        generate(ours, prompts, params)
        assert ours.report().num_duplicates == 0
    salted = [{"prompt": "The sky is", "cache_salt": str(n)} for n in range(4)]
    generate(ours, salted, greedy(4))
    assert ours.report().num_duplicates == 0
    assert ours.report().optimal_saved_ratio == 0, "salted prompts share nothing"
    generate(ours, prompts, [greedy(4) for _ in range(4)])
    assert ours.report().num_duplicates == 3, "equal parameters in separate objects are equal"
    ours.batchllm_config = dataclasses.replace(ours.batchllm_config, dedupe=False)
    generate(ours, prompts, greedy(4))
    assert ours.report().num_duplicates == 0


@pytest.mark.parametrize("lookahead", [1, 5])
def test_a_limited_look_ahead_loses_nothing(stock, ours, lookahead) -> None:
    prompts = [*document_questions(num_documents=2), "", *document_questions(num_documents=2)]
    ours.batchllm_config = dataclasses.replace(ours.batchllm_config, lookahead=lookahead)
    outputs = generate(ours, prompts, greedy(4))
    expected = generate(stock, prompts[:8], greedy(4))
    assert tokens(outputs[:8]) == tokens(outputs[9:]) == tokens(expected)
    assert isinstance(outputs[8], FailedRequestOutput)
    assert ours.report().num_duplicates == 8


def test_an_interrupted_batch_leaves_a_clean_engine(ours) -> None:
    class Interrupting:
        """A progress bar during which the user presses Ctrl-C."""

        def __init__(self, **_: Any) -> None:
            self.format_dict = {"elapsed": 1.0}
            self.n = 0

        def __iter__(self) -> Any:
            return iter(())

        def set_postfix_str(self, *_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    prompts = document_questions(num_documents=2)
    ours.enqueue(prompts, greedy(), use_tqdm=False)
    with pytest.raises(KeyboardInterrupt):
        ours.wait_for_completion(use_tqdm=Interrupting)
    assert not ours.llm_engine.has_unfinished_requests()
    scheduler = ours.llm_engine.engine_core.engine_core.scheduler
    scheduler.waiting.check_integrity()
    assert len(scheduler.waiting) == len(scheduler.running) == 0
    assert len(generate(ours, "Hello", greedy(2))) == 1


def test_the_stock_engine_beside_us_is_stock(stock, ours) -> None:
    """Installed but not selected, the plugin leaves vLLM's classes in place."""
    from vllm.v1.core.sched.request_queue import FCFSRequestQueue
    from vllm.v1.core.sched.scheduler import Scheduler

    from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

    stock_scheduler = stock.llm_engine.engine_core.engine_core.scheduler
    assert type(stock_scheduler) is Scheduler
    assert type(stock_scheduler.waiting) is FCFSRequestQueue
    assert type(ours.llm_engine.engine_core.engine_core.scheduler) is BatchLLMScheduler
