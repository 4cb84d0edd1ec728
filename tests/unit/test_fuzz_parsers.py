# SPDX-License-Identifier: Apache-2.0
"""Whatever users feed us is read, or refused with the documented error that names thing and value.

Never another exception, never a hang, never more memory than a multiple of the input. Random
inputs come from hypothesis: a few in ``make test``, many in ``make fuzz``.
"""

from __future__ import annotations

import io
import json
import random
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from plan_model import save_model
from rich.console import Console

from vllm_batchllm.admission.hints import HINT, MAX_HINT, hint_from
from vllm_batchllm.bench.suite import resolve_model, resolve_workloads
from vllm_batchllm.config import OPTIONS, BatchLLMConfig
from vllm_batchllm.errors import UsageError
from vllm_batchllm.input.reader import read_requests
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.request import PlanRequest, parse_request
from vllm_batchllm.input.tokenize import tokenize_requests
from vllm_batchllm.input.tokenizer import TokenizerError, load_tokenizer
from vllm_batchllm.measure.command_line import parse_options
from vllm_batchllm.messages import clip
from vllm_batchllm.plan.analysis import make_plan
from vllm_batchllm.plan.render import print_plan
from vllm_batchllm.scheduler.settings import config_of
from vllm_batchllm.workloads.batch import Batch
from vllm_batchllm.workloads.catalog import make_workload, workload_names
from vllm_batchllm.workloads.sources import is_file

MEGABYTE = 2**20
NUM_LINES = 50_000
IS_DEEP = settings.get_current_profile_name() == "fuzz"
SLOW = settings(max_examples=500 if IS_DEEP else 25)
"""For what writes files or starts a tokenizer."""

texts = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates, NUL, all
numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, -(10**4299), 10**4299]),
    st.floats(),
    st.booleans(),
)
scalars = st.one_of(st.none(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


KEYS = [
    "prompt",
    "messages",
    "body",
    "url",
    "model",
    "cache_salt",
    "max_tokens",
    "max_completion_tokens",
    "tools",
    "role",
    "content",
    "type",
    "text",
    "tool_calls",
    "function",
    "arguments",
    "chat_template_kwargs",
    "chat_template",
    "tokenize",
    "conversation",
    "add_generation_prompt",
]
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "poet", "\ud800"]) | values},
    optional={
        "content": st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}))
        | values,
        "tool_calls": st.lists(
            st.fixed_dictionaries({"function": st.fixed_dictionaries({"arguments": values})})
        )
        | values,
    },
)
bodies = st.one_of(
    st.dictionaries(st.sampled_from(KEYS) | texts, values, max_size=6),
    st.fixed_dictionaries(
        {"messages": st.lists(messages, max_size=3)},
        optional={
            "chat_template_kwargs": st.dictionaries(st.sampled_from(KEYS) | texts, values),
            "tools": st.lists(values, max_size=2),
            "max_tokens": values,
        },
    ),
    st.fixed_dictionaries(
        {"prompt": texts | st.lists(st.integers(0, 2**33), max_size=40)},
        optional={"max_tokens": numbers, "cache_salt": texts, "model": texts},
    ),
)
records = bodies | st.fixed_dictionaries({"body": bodies | values, "url": values})


@st.composite
def lines(draw: Any) -> bytes:
    """A line of a file: a record, good or bad, often with bytes cut off or put in."""
    text = json.dumps(draw(records), ensure_ascii=draw(st.booleans()))
    line = text.encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        start, end = sorted((draw(st.integers(0, len(line))), draw(st.integers(0, len(line)))))
        line = line[:start] + draw(st.binary(max_size=4)) + line[end:]
    return line.replace(b"\n", b" ")


def is_named(message: str, *things: object) -> bool:
    return all(clip(thing) in message for thing in things)


@given(line=lines() | st.binary(max_size=60))
def test_a_line_becomes_a_request_or_a_bad_line_with_a_reason(line: bytes) -> None:
    text = line.decode("utf-8", "replace")
    try:
        request = parse_request(3, text)
    except BadLineError as error:
        assert str(error).strip() and len(str(error)) < 500
    else:
        assert isinstance(request, PlanRequest) and request.content


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(save_model(tmp_path_factory.mktemp("model")))


@SLOW
@given(content=st.lists(lines() | st.binary(max_size=30), max_size=12).map(b"\n".join))
@example(content=b'\xef\xbb\xbf{"prompt": "after a byte order mark"}')
@example(content=b'\xff\xfe{\x00"\x00p\x00r\x00o\x00m\x00p\x00t\x00"\x00')
@example(content=b"prompt,max_tokens\nhello,5\n")
@example(content=b"PAR1\x15\x04\x15\x10\x15\x14L\x15\x02\x15\x00\x12\x00\x00PAR1")
@example(content=b'{"prompt": "a", "max_tokens": %d}\n' % (10**4299 * 9) * 2)
def test_a_file_of_anything_is_read_tokenised_and_planned(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Any, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "batch.jsonl"
    path.write_bytes(content)
    found = read_requests(path)
    result = tokenize_requests(found.requests, tokenizer)
    num_lines = sum(bool(line.strip()) for line in content.split(b"\n"))
    bad = len(found.bad_lines) + len(result.bad_lines)
    assert len(result.requests) + bad <= num_lines
    if result.requests:
        plan = make_plan(result.requests, 4, num_kv_blocks=5, levels=bool(bad % 2))
        assert json.loads(plan.to_json())["num_requests"] == len(result.requests)
        print_plan(plan, Console(file=io.StringIO()))


GARBAGE = {
    "open brackets": b"[" * MEGABYTE,
    "open objects": b'{"prompt":' * (MEGABYTE // 10),
    "closed brackets": b"[" * 500_000 + b"]" * 500_000,
    "brackets as a prompt": b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}",
    "brackets as a url": b'{"body": {}, "url": ' + b"[" * 900 + b"]" * 900 + b"}",
    "digits": b"9" * MEGABYTE,
    "digits as tokens": b'{"prompt": "a", "max_tokens": ' + b"9" * MEGABYTE + b"}",
    "an exponent": b'{"prompt": "a", "max_tokens": 1e999999999}',
    "not a number": b'{"prompt": [NaN, Infinity, -Infinity], "max_tokens": NaN}',
    "NUL bytes": b"\x00" * MEGABYTE,
    "NUL in a prompt": b'{"prompt": "\\u0000' + b"\\u0000" * 1000 + b'"}',
    "half surrogates": b'{"prompt": "' + b"\\ud800" * (MEGABYTE // 6) + b'"}',
    "byte order marks": b"\xef\xbb\xbf" * (MEGABYTE // 3),
    "empty lines": b"\n" * MEGABYTE,
    "spaces": b" " * MEGABYTE,
    "empty objects": b"{}\n" * NUM_LINES,
    "one letter a line": b"x\n" * NUM_LINES,
    "one long text": b'"' + b"a" * MEGABYTE,
    "backslashes": b'{"prompt": "' + b"\\" * MEGABYTE,
    "CSV": b"prompt,max_tokens\n" + b"hello,5\n" * NUM_LINES,
    "parquet": b"PAR1" + random.Random(0).randbytes(MEGABYTE) + b"PAR1",
    "UTF-16": ('{"prompt": "a"}\n' * (MEGABYTE // 32)).encode("utf-16"),
    "one key many times": b"{" + b'"prompt": "a", ' * (MEGABYTE // 15) + b'"prompt": "b"}',
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_a_megabyte_of_garbage_costs_little_time_and_memory(tmp_path: Path, garbage: str) -> None:
    path = tmp_path / "batch.jsonl"
    path.write_bytes(GARBAGE[garbage])
    start_s = time.process_time()
    result = read_requests(path)
    assert time.process_time() - start_s < 30, "a few seconds are what it should take"
    assert all(0 < len(bad.reason) < 500 for bad in result.bad_lines)
    path.write_bytes(GARBAGE[garbage][:50_000])
    tracemalloc.start()
    read_requests(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200 * 50_000


def test_a_line_that_nests_as_deeply_as_python_can_read_is_no_other_error() -> None:
    """Somewhere near the limit, reading succeeds, and what is done with the value could fail."""
    for depth in range(1, 1100):
        deep = "[" * depth + "]" * depth
        for text in (
            f'{{"prompt": {deep}}}',
            f'{{"body": {{}}, "url": {deep}}}',
            f'{{"prompt": "a", "max_tokens": {deep}}}',
            f'{{"messages": [{{"role": "user", "content": [{{"type": {deep}}}]}}]}}',
        ):
            with pytest.raises(BadLineError):
                parse_request(1, text)


options = st.dictionaries(st.sampled_from(OPTIONS), values, max_size=3) | st.dictionaries(
    texts | st.sampled_from(OPTIONS), values, max_size=3
)


@given(section=options | values)
@example(section={"order": "\ud800"})
@example(section={"max_wait_s": float("nan")})
@example(section={"kv_threshold": 10**400})
@example(section={"x" * MEGABYTE: "y" * MEGABYTE})
def test_options_are_checked_or_refused_by_name_and_value(section: Any) -> None:
    for read in (BatchLLMConfig.parse, of_engine):
        try:
            config = read(section)
        except TypeError as error:
            assert not isinstance(section, dict) and is_named(str(error), section)
        except ValueError as error:
            assert len(str(error)) < 2000
            assert any(is_named(str(error), key, value) for key, value in section.items())
        else:
            assert BatchLLMConfig.parse(json.loads(json.dumps(config.to_dict()))) == config


def of_engine(section: Any) -> BatchLLMConfig:
    """The options as they come with vLLM's ``additional_config``."""
    parallel = SimpleNamespace(distributed_executor_backend=None)
    return config_of(
        SimpleNamespace(additional_config={"batchllm": section}, parallel_config=parallel)
    )


pairs = st.one_of(
    texts,
    st.builds("{}={}".format, st.sampled_from(OPTIONS) | texts, texts),
    st.builds(lambda key, value: f"{key}={json.dumps(value)}", st.sampled_from(OPTIONS), values),
)


@given(order=st.none() | texts, given_pairs=st.lists(pairs, max_size=3))
@example(order=None, given_pairs=["kv_threshold=" + "1" * 5000])
@example(order=None, given_pairs=["kv_threshold=" + "[" * 100_000])
@example(order=None, given_pairs=["x" * MEGABYTE])
@example(order=None, given_pairs=["\ud800=\ud800", "kv_threshold=NaN"])
def test_options_of_the_command_line_are_parsed_or_refused(order: Any, given_pairs: Any) -> None:
    try:
        parsed = parse_options(order, given_pairs)
    except UsageError as error:
        assert 0 < len(str(error)) < 2000
    else:
        assert BatchLLMConfig.parse(dict(parsed))


@given(extra=st.none() | st.fixed_dictionaries({HINT: values}) | st.dictionaries(texts, values))
@example(extra={HINT: "9" * MEGABYTE})
@example(extra={HINT: float("nan")})
def test_a_hint_is_a_whole_number_or_refused_by_name_and_value(extra: Any) -> None:
    try:
        hint = hint_from(extra)
    except ValueError as error:
        assert is_named(str(error), HINT, extra[HINT]) and len(str(error)) < 1000
    else:
        assert hint is None or (type(hint) is int and 1 <= hint <= MAX_HINT)


@given(names=st.lists(texts | st.sampled_from(["suite", "all", "micro-2000-200"]), max_size=3))
@example(names=["\x00"])
@example(names=["x" * MEGABYTE])
@example(names=["-"])
def test_workload_names_are_known_or_refused_with_the_closest(names: list[str]) -> None:
    files = set(filter(is_file, names))  # standard input, if nothing else
    try:
        assert set(resolve_workloads(names)) <= set(workload_names()) | files
    except UsageError as error:
        assert any(is_named(str(error), name) for name in names) and len(str(error)) < 2000


@SLOW
@given(
    name=st.sampled_from(workload_names()),
    scale=st.floats() | st.sampled_from([1e-9, 5e-324, 1e300, 8]),
    num_requests=st.none() | st.integers(-2, 20) | st.just(10**30),
    seed=st.integers(-1, 5) | st.just(10**50),
    vocab_size=st.integers(-1, 100) | st.just(10**30),
)
@example(name="long-16000", scale=1e-9, num_requests=1, seed=0, vocab_size=100)
@example(name="tree-3", scale=8, num_requests=1, seed=-1, vocab_size=100)
@example(name="tree-3", scale=8, num_requests=10**30, seed=0, vocab_size=100)
@example(name="tree-3", scale=8, num_requests=1, seed=0, vocab_size=10**30)
def test_a_workload_is_drawn_or_refused(
    name: str, scale: float, num_requests: int | None, seed: int, vocab_size: int
) -> None:
    if num_requests is None and not scale > 1:
        num_requests = 3  # the whole workload at full length is what it is: large
    try:
        batch = make_workload(
            name, scale=scale, num_requests=num_requests, seed=seed, vocab_size=vocab_size
        )
    except UsageError as error:
        assert str(error)
    else:
        assert isinstance(batch, Batch)
        batch.check()


NAMES = ["", "\x00", "~nobody/model", "a" * 5000, "/" * 300, ".", "a/b/c", "..", "\ud800"]


@SLOW
@given(
    name=st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=())).map("./".__add__)
)
def test_a_model_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(TokenizerError):
        load_tokenizer(name)
    with pytest.raises(UsageError):
        resolve_model(name)


@SLOW
@given(config=values | st.fixed_dictionaries({"model_type": st.just("llama") | values}))
@example(config=[])
@example(config={"model_type": "llama", "vocab_size": "many"})
def test_a_model_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "broken"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(config))
    try:
        assert resolve_model(str(folder))[1] >= 0
    except UsageError as error:
        assert str(folder) in str(error)
    with pytest.raises(TokenizerError):
        load_tokenizer(str(folder))
