# SPDX-License-Identifier: Apache-2.0
"""What is simulated: workloads, batch files and traces, and how bad ones are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from plan_model import save_model, write_lines

from vllm_batchllm.errors import UsageError
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.workloads.batch import common_prefix_len
from vllm_batchllm.workloads.catalog import make_workload
from vllm_batchllm.workloads.sources import InputOptions, load_batch

PLAIN = InputOptions()


def request(**fields: Any) -> dict[str, Any]:
    return {"prompt": [1, 2, 3], "max_tokens": 5} | fields


def traced(prompt: int, output: int, *ids: int) -> dict[str, Any]:
    return {"timestamp": 0, "input_length": prompt, "output_length": output, "hash_ids": ids}


def refused(path: Path | str, options: InputOptions = PLAIN) -> str:
    with pytest.raises(UsageError) as caught:
        load_batch(str(path), options)
    return str(caught.value)


def test_a_workload_is_drawn_as_bench_draws_it() -> None:
    batch = load_batch("tree-3", InputOptions(scale=8, num_requests=20, seed=3))
    assert batch == make_workload("tree-3", num_requests=20, seed=3, vocab_size=2**17)


def test_an_unknown_workload_lists_the_known_ones() -> None:
    assert "unknown workload 'tree-4'. Did you mean 'tree-3'?" in refused("tree-4")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_is_refused(tmp_path: Path, scale: float) -> None:
    path = write_lines(tmp_path / "t.jsonl", [traced(10, 1, 0)])
    for source in (path, "tree-3"):
        assert "scale must be a number above 0" in refused(source, InputOptions(scale=scale))


def test_a_batch_file_with_token_ids_needs_no_tokenizer(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [request(), request(prompt=[4], max_tokens=2)])
    batch = load_batch(str(path), PLAIN)
    assert batch.prompts == [[1, 2, 3], [4]] and batch.output_lens == [5, 2]
    assert batch.lengths_known and batch.name == "b.jsonl"
    assert load_batch(str(path), InputOptions(num_requests=1)).num_requests == 1


def test_outputs_end_before_their_limit_where_told(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [request(), request(max_tokens=2)])
    batch = load_batch(str(path), InputOptions(output_tokens=3))
    assert batch.output_lens == [3, 2] and not batch.lengths_known


def test_a_text_needs_a_tokenizer(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [request(prompt="hello")])
    assert "has prompts of text; name the model with --tokenizer" in refused(path)
    model = save_model(tmp_path)
    batch = load_batch(str(path), InputOptions(tokenizer=model))
    assert len(batch.prompts[0]) == 1 + len("hello")
    assert "missing" in refused(path, InputOptions(tokenizer=str(tmp_path / "missing")))


def test_a_request_without_a_limit_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "b.jsonl", [request(), {"prompt": [1]}])
    assert "request 2 states no max_tokens; give --output-tokens" in refused(path)
    assert load_batch(str(path), InputOptions(output_tokens=4)).output_lens == [4, 4]


def test_namespaces_share_nothing(tmp_path: Path) -> None:
    prompt = list(range(40))
    lines = [request(prompt=prompt, cache_salt=salt) for salt in ("a", "b", "a")]
    lines.append(request(prompt=prompt))
    prompts = load_batch(str(write_lines(tmp_path / "b.jsonl", lines)), PLAIN).prompts
    assert prompts[0] == prompts[2]
    assert common_prefix_len(prompts[0], prompts[1]) == 0
    assert common_prefix_len(prompts[0], prompts[3]) == 0
    assert optimal_saved_tokens(prompts, 16) == 32


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 2: not valid JSON"),
        (b"\xff", "line 2: not valid UTF-8"),
        (b'{"prompt": [], "max_tokens": 1}', 'line 2: "prompt" is empty'),
    ],
)
def test_a_bad_line_of_a_batch_file_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    assert reason in refused(write_lines(tmp_path / "b.jsonl", [request(), line]))


def test_a_trace_becomes_prompts_that_share_as_its_ids_do(tmp_path: Path) -> None:
    lines = [traced(1024, 512, 7, 8), traced(1100, 1, 7, 9, 3)]
    path = write_lines(tmp_path / "trace.jsonl", lines)
    batch = load_batch(str(path), InputOptions(scale=32))
    assert [len(prompt) for prompt in batch.prompts] == [32, 34]
    assert common_prefix_len(*batch.prompts) == 16
    assert batch.output_lens == [16, 1]
    full = load_batch(str(path), PLAIN)
    assert [len(prompt) for prompt in full.prompts] == [1024, 1100]


def test_a_packed_trace_is_read_as_a_plain_one(tmp_path: Path) -> None:
    lines = [traced(600, 3, 1, 2), traced(512, 9, 1)]
    plain = write_lines(tmp_path / "trace.jsonl", lines)
    packed = tmp_path / "trace.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_batch(str(packed), PLAIN).prompts == load_batch(str(plain), PLAIN).prompts


def test_ids_of_a_trace_may_be_larger_than_token_ids(tmp_path: Path) -> None:
    lines = [traced(512, 1, 2**70), traced(512, 1, 2**70), traced(512, 1, 3)]
    batch = load_batch(str(write_lines(tmp_path / "t.jsonl", lines)), PLAIN)
    assert batch.prompts[0] == batch.prompts[1] != batch.prompts[2]
    assert optimal_saved_tokens(batch.prompts, 16) == 496


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 2: not valid JSON"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b"[]", "line 2: not a JSON object but list"),
        (json.dumps(traced(512, 1, 1, 2)).encode(), 'line 2: "input_length" 512 needs 1 "hash_ids"'),
        (json.dumps(traced(512, -1, 1)).encode(), 'line 2: "output_length" must be an integer'),
        (b'{"hash_ids": [1]}', 'line 2: "input_length" is missing'),
    ],
)  # fmt: skip
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write_lines(tmp_path / "trace.jsonl", [traced(512, 1, 1), line])
    text = refused(path)
    assert str(path) in text and reason in text


def test_a_scale_beyond_a_block_of_the_trace_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "trace.jsonl", [traced(512, 1, 1)])
    assert "give 1 to 512" in refused(path, InputOptions(scale=2000))
    assert "give 1 to 512" in refused(path, InputOptions(scale=0.5))


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    assert f"{path} holds no requests" in refused(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "none.jsonl")


def test_damaged_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    packed = gzip.compress(json.dumps(traced(512, 1, 1)).encode() * 1000)
    for content in (packed[:-20], b"no gzip", packed[:12] + b"\xff" * 40):
        path.write_bytes(content)
        assert "cannot be read" in refused(path)
