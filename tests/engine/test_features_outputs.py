# SPDX-License-Identifier: Apache-2.0
"""What a request may ask of its output, all in one contended batch: every answer is stock's.

Each document is asked once per feature, so requests with different features share prefixes, run
in the same steps and wait for the same memory.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import pytest
from tiny_engines import admissions, check_clean, num_changes, num_computed, scheduler_of, tokens
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import StructuredOutputsParams

DOCUMENTS = [topics[name][:620] for name in sorted(topics)[3:8]]

CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["small", "large"]},
    },
    "required": ["name", "size"],
    "additionalProperties": False,
}
CODE = r"[A-Z]{2}-\d{3}"
CHOICES = ["syntax", "semantics", "neither"]
STOPS = [" the", "."]
BAD = [" The", "The", " the", " is", " a"]


def structured(**constraint: Any) -> dict[str, Any]:
    return {"structured_outputs": StructuredOutputsParams(**constraint)}


FEATURES: dict[str, dict[str, Any]] = {
    "plain": {"max_tokens": 10},
    "json": {"max_tokens": 32, **structured(json=CITY, disable_any_whitespace=True)},
    "regex": {"max_tokens": 10, **structured(regex=CODE)},
    "choice": {"max_tokens": 10, **structured(choice=CHOICES)},
    "logprobs": {"max_tokens": 4, "logprobs": 3},
    "prompt_logprobs": {"max_tokens": 2, "prompt_logprobs": 1},
    "stop": {"max_tokens": 16, "stop": STOPS},
    "stop_token": {"max_tokens": 16, "stop_token_ids": [28, 30, 198]},
    "bad_words": {"max_tokens": 10, "bad_words": BAD},
    "n": {"max_tokens": 5, "n": 2, "temperature": 0.9, "seed": 11},
    "seed": {"max_tokens": 6, "temperature": 1.0, "top_p": 0.95, "seed": 7},
}


class Runs(NamedTuple):
    """Outputs of both engines by feature, one per document, and what the scheduler did."""

    stock: dict[str, list[RequestOutput]]
    ours: dict[str, list[RequestOutput]]
    asked: list[tuple[str, int]]
    admitted: list[tuple[str, int]]
    report: Any


@pytest.fixture(scope="module")
def runs(stock_llm: Any, batch_llm: Any) -> Runs:
    asked = [(name, number) for name in FEATURES for number in range(len(DOCUMENTS))]
    random.Random(0).shuffle(asked)
    prompts = [f"{DOCUMENTS[number]}\n\nAbout {name}:" for name, number in asked]
    params = [SamplingParams(**{"temperature": 0} | FEATURES[name]) for name, _ in asked]

    def run(llm: Any) -> dict[str, list[RequestOutput]]:
        assert llm.reset_prefix_cache()
        outputs = llm.generate(prompts, [each.clone() for each in params], use_tqdm=False)
        by_request = dict(zip(asked, outputs, strict=True))
        return {
            name: [by_request[name, number] for number in range(len(DOCUMENTS))]
            for name in FEATURES
        }

    of_stock = run(stock_llm)
    with admissions(batch_llm) as order:
        of_ours = run(batch_llm)
    check_clean(batch_llm)
    return Runs(of_stock, of_ours, asked, [asked[number] for number in order], batch_llm.report())


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [each.text for output in outputs for each in output.outputs]


def ends(outputs: list[RequestOutput]) -> list[Any]:
    return [(each.finish_reason, each.stop_reason) for o in outputs for each in o.outputs]


def test_the_batch_shares_contends_and_is_reordered(runs) -> None:
    """What makes the comparisons below worth something."""
    of_stock = sum(num_computed(outputs) for outputs in runs.stock.values())
    of_ours = sum(num_computed(outputs) for outputs in runs.ours.values())
    assert of_ours < of_stock, "the cache is not under pressure"
    changes = [
        num_changes([number for _, number in order]) for order in (runs.admitted, runs.asked)
    ]
    assert changes[0] < changes[1] / 2, "admitted much as they came"
    assert len(runs.admitted) == len(DOCUMENTS) * (len(FEATURES) + 1), "n = 2 counts twice"
    assert runs.report.num_failed == 0 and runs.report.num_needed_lost == 0


@pytest.mark.parametrize("feature", FEATURES)
def test_tokens_texts_and_endings_are_stocks(runs, feature) -> None:
    expected, outputs = runs.stock[feature], runs.ours[feature]
    assert tokens(outputs) == tokens(expected)
    assert texts(outputs) == texts(expected)
    assert ends(outputs) == ends(expected)


@pytest.mark.parametrize(
    ("feature", "fits"),
    [
        ("json", lambda text: sorted(json.loads(text)) == ["name", "size"]),
        ("regex", re.compile(CODE).fullmatch),
        ("choice", CHOICES.__contains__),
    ],
)
def test_structured_output_fits_its_grammar(
    runs, batch_llm, feature: str, fits: Callable[[str], object]
) -> None:
    for output in runs.ours[feature]:
        assert fits(output.outputs[0].text), output.outputs[0].text
    backend = scheduler_of(batch_llm).structured_output_manager.backend
    assert type(backend).__name__ == "XgrammarBackend"


def logprob_table(logprobs: Any) -> list[dict[int, float] | None]:
    return [
        None if step is None else {token: each.logprob for token, each in step.items()}
        for step in logprobs
    ]


def test_logprobs_are_stocks(runs) -> None:
    for expected, output in zip(runs.stock["logprobs"], runs.ours["logprobs"], strict=True):
        ours = logprob_table(output.outputs[0].logprobs)
        for step, of_stock in zip(ours, logprob_table(expected.outputs[0].logprobs), strict=True):
            assert len(step) >= 3 and step == pytest.approx(of_stock, abs=1e-3)


def test_prompt_logprobs_are_stocks_for_every_prompt_token(runs) -> None:
    pairs = zip(runs.stock["prompt_logprobs"], runs.ours["prompt_logprobs"], strict=True)
    for expected, output in pairs:
        assert output.num_cached_tokens == 0, "they need every token computed"
        ours, of_stock = (logprob_table(each.prompt_logprobs) for each in (output, expected))
        assert len(ours) == len(output.prompt_token_ids) and ours[0] is None
        for step, theirs in zip(ours[1:], of_stock[1:], strict=True):
            assert step == pytest.approx(theirs, abs=1e-3)


def test_stops_and_bad_words_did_something(runs, batch_llm) -> None:
    for feature in ("stop", "stop_token"):
        assert "stop" in [reason for reason, _ in ends(runs.ours[feature])], feature
    assert {reason for _, reason in ends(runs.ours["stop"])} & set(STOPS)
    encode = batch_llm.get_tokenizer().encode
    banned = {ids[0] for word in BAD if len(ids := encode(word, add_special_tokens=False)) == 1}
    assert len(banned) == len(BAD)
    used = {
        feature: {token for (answer,) in tokens(runs.ours[feature]) for token in answer}
        for feature in ("plain", "bad_words")
    }
    assert used["plain"] & banned and not used["bad_words"] & banned


def test_samples_of_one_request_differ_and_share_its_prompt(runs) -> None:
    for output in runs.ours["n"]:
        first, second = output.outputs
        assert first.token_ids != second.token_ids
    assert runs.report.num_requests == len(DOCUMENTS) * len(FEATURES)
