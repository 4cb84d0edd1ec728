# SPDX-License-Identifier: Apache-2.0
"""What one call, one request or one answer does, it does to itself alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tiny_engines import started
from tqdm import tqdm
from vllm import SamplingParams

from vllm_batchllm import LLM
from vllm_batchllm.config import BatchLLMConfig

OK = {"prompt_token_ids": [5, 6, 7, 8]}
OTHER = {"prompt_token_ids": [9, 6, 7, 8]}
DOCUMENT = [11] * 96


def greedy(**fields: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=3, detokenize=False, **fields)


@pytest.fixture(scope="module")
def engine(tiny_model: str) -> Iterator[Any]:
    with started(LLM, tiny_model) as llm:
        yield llm


@pytest.fixture
def llm(engine: Any) -> Iterator[Any]:
    assert engine.reset_prefix_cache()
    yield engine
    assert not engine.llm_engine.has_unfinished_requests(), "something is left in the engine"


@pytest.mark.parametrize("bad", [[5, 2.5], [5, "6"]])
def test_what_becomes_of_tokens_that_are_none_is_left_to_vllm(
    llm: Any, bad: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for duplicates must not fail where vLLM would not, nor for other requests."""
    ended = []
    for dedupe in (True, False):
        monkeypatch.setattr(llm, "batchllm_config", BatchLLMConfig(dedupe=dedupe))
        outputs = llm.generate([OK, {"prompt_token_ids": bad}, OK], greedy(), use_tqdm=False)
        ended.append([output.outputs[0].finish_reason for output in outputs])
    assert ended[0] == ended[1] and ended[0][0] == ended[0][2] == "length"


def test_a_token_out_of_the_vocabulary_fails_alone(ours: Any) -> None:
    good, failed = ours.generate([OK, {"prompt_token_ids": [5, 2**70]}], greedy(), use_tqdm=False)
    assert good.outputs[0].finish_reason == "length"
    assert failed.outputs[0].finish_reason == "error" and "vocab" in str(failed.error)


def test_a_call_that_fails_takes_no_other_call_along(llm: Any) -> None:
    llm.enqueue([OK, OTHER], greedy())
    with pytest.raises(Exception, match="empty"):
        llm.enqueue([{"prompt_token_ids": []}], greedy())
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [[5, 6, 7, 8], [9, 6, 7, 8]]


def test_duplicates_are_answered_though_the_one_that_was_to_answer_is_aborted(llm: Any) -> None:
    expected = llm.generate([OK], greedy(), use_tqdm=False)[0].outputs[0].token_ids
    ids = llm.enqueue([OK, OK, OTHER, OK], greedy())
    llm.llm_engine.abort_request([ids[0]], internal=True)
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [
        [5, 6, 7, 8],
        [9, 6, 7, 8],
        [5, 6, 7, 8],
    ]
    assert [int(output.request_id) for output in outputs] == [
        int(one.partition("-")[0]) for one in ids[1:]
    ]
    assert (
        list(outputs[0].outputs[0].token_ids)
        == list(outputs[2].outputs[0].token_ids)
        == list(expected)
    )


def test_a_progress_bar_that_fails_leaves_nothing_behind(llm: Any) -> None:
    uses = []

    def bar(*args: Any, **kwargs: Any) -> Any:
        uses.append(kwargs.get("desc"))
        if len(uses) == 2:
            raise RuntimeError("no terminal")
        return tqdm(*args, **kwargs, disable=True)

    with pytest.raises(RuntimeError, match="no terminal"):
        llm.generate([OK, OTHER] * 3, greedy(), use_tqdm=bar)
    assert len(uses) == 2, "the second bar is that of the run"
    assert len(llm.generate([OK, OTHER] * 3, greedy(), use_tqdm=False)) == 6


def test_requests_that_move_blocks_to_other_engines_share_no_answer(llm: Any) -> None:
    moving = greedy(extra_args={"kv_transfer_params": {"do_remote_decode": True}})
    llm.generate([OK, OK], [moving, moving.clone()], use_tqdm=False)
    assert llm.report().num_duplicates == 0
    llm.generate([OK, OK], greedy(), use_tqdm=False)
    assert llm.report().num_duplicates == 1


def test_a_hint_may_come_out_of_a_table(llm: Any) -> None:
    hinted = greedy(extra_args={"expected_output_tokens": np.int64(5)})
    (output,) = llm.generate([OK], hinted, use_tqdm=False)
    assert output.outputs[0].finish_reason == "length"


def test_a_second_call_on_a_warm_cache_saves_no_more_than_was_possible(llm: Any) -> None:
    prompts = [{"prompt_token_ids": [*DOCUMENT, n, 5, 6]} for n in range(20, 24)]
    first, second = (
        (llm.generate(prompts, greedy(), use_tqdm=False), llm.report())[1] for _ in range(2)
    )
    assert first.saved_ratio == pytest.approx(3 * 96 / (4 * 99)) == first.optimal_saved_ratio
    assert second.saved_ratio == pytest.approx(4 * 96 / (4 * 99)) == second.optimal_saved_ratio
    assert first.reuse_efficiency == second.reuse_efficiency == 1.0


def test_a_report_says_who_reads_no_cache(llm: Any) -> None:
    prompts = [{"prompt_token_ids": [*DOCUMENT, n]} for n in range(20, 22)]
    llm.generate(prompts, [greedy(prompt_logprobs=1), greedy()], use_tqdm=False)
    report = llm.report()
    assert report.num_unshared == 1 and "2 (1 read no cache)" in str(report)


def test_an_adapter_of_images_is_asked_for_each_prompt(llm: Any, monkeypatch: Any) -> None:
    """Which adapter it is, is vLLM's own method; here: that it is asked, and its errors stay alone."""
    asked = []

    def resolve(prompt: Any, lora_request: Any) -> Any:
        asked.append(prompt["prompt_token_ids"])
        if len(asked) == 1:
            raise ValueError("no adapter for this image")
        return lora_request

    monkeypatch.setattr(llm, "_resolve_mm_lora", resolve)
    failed, good = llm.generate([OK, OTHER], greedy(), use_tqdm=False)
    assert asked == [[5, 6, 7, 8], [9, 6, 7, 8]]
    assert str(failed.error) == "no adapter for this image"
    assert good.outputs[0].finish_reason == "length"


def test_reports_have_figures_that_json_can_hold(llm: Any) -> None:
    llm.generate([OK], greedy(), use_tqdm=False)
    assert {field.name for field in dataclasses.fields(llm.report())} <= set(llm.report().to_dict())
