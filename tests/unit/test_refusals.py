# SPDX-License-Identifier: Apache-2.0
"""Inputs that once ended in a traceback, or in a message without the value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_batchllm.admission.hints import HINT, hint_from
from vllm_batchllm.bench.suite import resolve_model, resolve_workloads
from vllm_batchllm.config import BatchLLMConfig
from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.request import BadLineError, parse_request
from vllm_batchllm.input.tokenizer import TokenizerError, load_tokenizer
from vllm_batchllm.measure.command_line import parse_options
from vllm_batchllm.messages import clip
from vllm_batchllm.workloads.catalog import make_workload

HUGE = 10**5000
"""Python writes no number of so many digits."""


def nested(depth: int) -> list[object]:
    """A list in a list in a list."""
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def test_any_value_can_be_shown() -> None:
    assert clip("dfs") == "'dfs'" and clip(-3) == "-3" and clip([1, "a"]) == "[1, 'a']"
    assert clip(HUGE) == "<a whole number of 16,610 bits>"
    assert len(clip("x" * 10**6)) < 200
    assert clip(nested(10_000)) == "[[[[[...]]]]]"


@pytest.mark.parametrize("value", [HUGE, "x" * 10**6, nested(10_000)], ids=["huge", "long", "deep"])
def test_options_of_any_size_are_named_in_few_words(value: object) -> None:
    with pytest.raises(ValueError, match=r"batchllm option 'dedupe' = .{1,200} is not allowed"):
        BatchLLMConfig.parse({"dedupe": value})
    with pytest.raises(ValueError, match=r"unknown batchllm option 'x' \(value .{1,200}\)"):
        BatchLLMConfig.parse({"x": value})
    with pytest.raises(ValueError, match=rf"hint '{HINT}' = .{{1,200}} is not allowed"):
        hint_from({HINT: [value]})


@pytest.mark.parametrize("text", ["1" * 5000, "[" * 100_000], ids=["digits", "brackets"])
def test_option_values_that_python_cannot_read_are_refused_as_text(text: str) -> None:
    with pytest.raises(UsageError, match=r"option 'kv_threshold' = '.* is not allowed"):
        parse_options(None, [f"kv_threshold={text}"])


def test_long_names_are_compared_in_no_time() -> None:
    with pytest.raises(UsageError, match=r"unknown workload 'xxx.*\.\.\.x*'"):
        resolve_workloads(["x" * 2**20])


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody/model", "~\x00", "\x00", "\ud800"])
def test_names_that_no_file_can_have_are_no_model(name: str) -> None:
    with pytest.raises(TokenizerError):
        load_tokenizer(name)
    with pytest.raises(UsageError):
        resolve_model(name)


@pytest.mark.parametrize("config", [[], "text", {"model_type": "llama", "vocab_size": "many"}])
def test_a_broken_model_config_is_refused(tmp_path: Path, config: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="cannot read the configuration of model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"scale": 1e-6}, "scale 1e-06 makes texts of .* tokens; at most 1,048,576"),
        ({"scale": 5e-324}, "scale 4.94066e-324 makes texts of inf tokens"),
        ({"num_requests": 10**9}, "1,000,000,000 requests are too many; at most 1,000,000"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"vocab_size": 2**40}, "a vocabulary of 1099511627776 tokens is too large"),
    ],
)
def test_workloads_that_would_fill_the_memory_are_refused(
    figures: dict[str, float], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        make_workload("industry", **figures)


def test_a_request_brings_no_chat_template() -> None:
    """A template is a program: it could loop for hours."""
    line = {
        "messages": [{"role": "user", "content": "a"}],
        "chat_template_kwargs": {"chat_template": "x"},
    }
    with pytest.raises(BadLineError, match='must not set "chat_template"; vLLM refuses it'):
        parse_request(1, json.dumps(line))


def test_an_output_limit_beyond_all_numbers_is_refused() -> None:
    """Two of them made a sum that could not be printed."""
    line = json.dumps({"prompt": "a", "max_tokens": 9 * 10**4000})
    with pytest.raises(
        BadLineError, match=r'"max_tokens" must be a whole number from 1 to 2\*\*63'
    ):
        parse_request(1, line)
