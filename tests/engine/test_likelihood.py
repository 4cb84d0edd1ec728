# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of prompts, against stock vLLM, which computes every prompt whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
from vllm import SamplingParams

from vllm_batchllm.offline.outputs import FailedRequestOutput

SHOTS = "".join(
    f"Question: what is {a} plus {b}?\nAnswer: {a + b}\n\n"
    for a, b in zip(range(2, 14), range(5, 17), strict=True)
)
QUESTIONS = [
    f"{SHOTS}Question: what is {a} plus {a + 1}, if {a} is less than {a + 1}?\nAnswer:"
    for a in range(20, 26)
]
CHOICES = [" 41", " 43, as one can see", " 45", " The sum is 47"]


def scoring(start: int | None = None, **fields: Any) -> SamplingParams:
    """What asks for log-probabilities of a prompt, of all of it or from a start on."""
    extra_args = {} if start is None else {"extra_args": {"prompt_logprobs_start": start}}
    return SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1, **extra_args, **fields)


@pytest.fixture(scope="module")
def tokens(batch_llm: Any) -> list[tuple[list[int], list[int]]]:
    """Pairs of context and continuation, as tokens."""
    encode = batch_llm.get_tokenizer().encode
    pairs = []
    for question in QUESTIONS:
        num_context = len(encode(question))
        for choice in CHOICES:
            whole = encode(question + choice)
            pairs.append((whole[:num_context], whole[num_context:]))
    return pairs


@pytest.fixture(scope="module")
def expected(stock_llm: Any, tokens: list[tuple[list[int], list[int]]]) -> list[Any]:
    """Stock's values of all positions."""
    prompts = [{"prompt_token_ids": context + tail} for context, tail in tokens]
    outputs = stock_llm.generate(prompts, scoring(), use_tqdm=False)
    return [output.prompt_logprobs for output in outputs]


def test_values_from_a_start_on_equal_those_of_stock(
    ours: Any, tokens: list[tuple[list[int], list[int]]], expected: list[Any]
) -> None:
    prompts = [{"prompt_token_ids": context + tail} for context, tail in tokens]
    params = [scoring(len(context)) for context, _ in tokens]
    outputs = ours.generate(prompts, params, use_tqdm=False)
    for output, whole, (context, tail) in zip(outputs, expected, tokens, strict=True):
        found = output.prompt_logprobs
        assert len(found) == len(context) + len(tail) == len(whole)
        assert found[: len(context)] == [None] * len(context)
        for ours_at, stock_at in zip(found[len(context) :], whole[len(context) :], strict=True):
            assert as_plain(ours_at) == as_plain(stock_at)
    report = ours.report()
    assert report.saved_ratio > 0.75 and report.reuse_efficiency > 0.99
    assert report.num_unshared == 0


def as_plain(values: dict[int, Any]) -> dict[int, Any]:
    """Values as they can be compared: to 1e-5, since the shape of a step moves the last bits."""
    return {
        token: (each.rank, each.decoded_token, pytest.approx(each.logprob, abs=1e-5))
        for token, each in values.items()
    }


def test_likelihoods_equal_those_of_stock(
    ours: Any, tokens: list[tuple[list[int], list[int]]], expected: list[Any]
) -> None:
    contexts = [question for question in QUESTIONS for _ in CHOICES]
    results = ours.loglikelihood(contexts, CHOICES * len(QUESTIONS), use_tqdm=False)
    for result, whole, (context, tail) in zip(results, expected, tokens, strict=True):
        at = whole[len(context) :]
        values = [each[token].logprob for each, token in zip(at, tail, strict=True)]
        best = [max(each.values(), key=lambda one: one.logprob).logprob for each in at]
        assert result.token_logprobs == pytest.approx(values, abs=1e-5)
        assert result.logprob == pytest.approx(sum(values), abs=1e-4)
        assert result.is_greedy == (values == best)
    assert ours.report().num_requests < len(contexts), (
        "pairs with other last tokens are one request"
    )


def test_a_text_as_a_whole_in_windows(ours: Any, stock: Any) -> None:
    encode = ours.get_tokenizer().encode
    text = SHOTS * 4
    ids = encode(text)
    assert len(ids) > ours.model_config.max_model_len
    (result,) = ours.loglikelihood_rolling([text], use_tqdm=False)
    assert len(result.token_logprobs) == len(ids)
    room = ours.model_config.max_model_len - 1
    whole = [ours.get_tokenizer().bos_token_id, *ids]
    first = {"prompt_token_ids": whole[:room]}
    (output,) = stock.generate([first], scoring(), use_tqdm=False)
    values = [
        each[token].logprob
        for each, token in zip(output.prompt_logprobs[1:], whole[1:room], strict=True)
    ]
    assert result.token_logprobs[: len(values)] == pytest.approx(values, abs=1e-5)
    assert math.isfinite(result.logprob) and result.logprob < 0


def test_bad_pairs_fail_alone_and_by_name(ours: Any) -> None:
    limit = ours.model_config.max_model_len
    contexts = ["one two", "one two", [5] * limit, "", [5, 6]]
    continuations = [" three", "", [7], " three", [7]]
    good, empty, long, alone, tokens = ours.loglikelihood(contexts, continuations, use_tqdm=False)
    assert good.logprob < 0 and alone.logprob < 0 and tokens.logprob < 0
    assert isinstance(empty, FailedRequestOutput) and "has no tokens" in str(empty.error)
    assert isinstance(long, FailedRequestOutput) and f"{limit + 1:,} tokens" in str(long.error)
    with pytest.raises(ValueError, match="has no tokens"):
        ours.loglikelihood(["one"], [""])
    with pytest.raises(ValueError, match="2 contexts were given for 1 continuations"):
        ours.loglikelihood(["one", "two"], [" three"])
    assert ours.loglikelihood([], []) == []


def test_a_bad_start_fails_alone(ours: Any) -> None:
    prompt = {"prompt_token_ids": [5, 6, 7]}
    good, bad = ours.generate([prompt] * 2, [scoring(2), scoring(3)], use_tqdm=False)
    assert good.prompt_logprobs[:2] == [None, None] and 7 in good.prompt_logprobs[2]
    assert isinstance(bad, FailedRequestOutput) and "beyond the prompt of 3" in str(bad.error)


@pytest.mark.parametrize(
    "fields",
    [{"flat_logprobs": True}, {"detokenize": False}, {"logprobs": 2}, {"n": 2, "temperature": 0.7}],
    ids=["flat", "no text", "logprobs beside", "n = 2"],
)
def test_a_start_beside_other_options(ours: Any, fields: dict[str, Any]) -> None:
    prompt = {"prompt_token_ids": [7 + n % 90 for n in range(200)]}
    whole = SamplingParams(**{"temperature": 0} | fields, max_tokens=2, prompt_logprobs=2, seed=1)
    started = whole.clone()
    started.extra_args = {"prompt_logprobs_start": 180}
    (first,) = ours.generate([prompt], whole, use_tqdm=False)
    (second,) = ours.generate([prompt], started, use_tqdm=False)
    assert second.num_cached_tokens == 160
    assert [each.token_ids for each in second.outputs] == [each.token_ids for each in first.outputs]
    for position in range(200):
        found = second.prompt_logprobs[position]
        if position < 180:
            assert not found
        else:
            assert as_plain(found) == as_plain(first.prompt_logprobs[position])


def test_a_pair_that_the_engine_ends_fails_alone(ours: Any) -> None:
    """As one would with pipeline parallelism, where the scheduler refuses a start."""
    generate = ours.generate

    def one_ended(*args: Any, **kwargs: Any) -> list[Any]:
        outputs = list(generate(*args, **kwargs))
        outputs[0].outputs[0].finish_reason = "error"
        return outputs

    ours.generate = one_ended
    try:
        bad, good = ours.loglikelihood([[5, 6], [7, 8]], [[9, 10], [11]], use_tqdm=False)
    finally:
        del ours.generate
    assert isinstance(bad, FailedRequestOutput) and "ended request" in str(bad.error)
    assert good.logprob < 0
