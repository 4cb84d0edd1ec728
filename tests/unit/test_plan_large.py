# SPDX-License-Identifier: Apache-2.0
"""Plans of large files: estimated on text, held against the exact ones; split, samples, every kind of file."""

from __future__ import annotations

import gzip
import io
import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_model import save_model, write_lines
from test_plan_command import run, run_json

from vllm_batchllm.input.line import LineDefaults, parse_line
from vllm_batchllm.input.record import BadLineError
from vllm_batchllm.input.text_table import text_table
from vllm_batchllm.plan import load
from vllm_batchllm.plan.analysis import Plan
from vllm_batchllm.plan.crowding import prompt_tokens_again
from vllm_batchllm.plan.render import no_groups_text
from vllm_batchllm.plan.text_groups import text_groups
from vllm_batchllm.plan.text_lru import simulate_text_lru
from vllm_batchllm.prefix.prefix_order import prefix_order
from vllm_batchllm.workloads.sources import InputOptions, load_batch


def grouped(num: int, size: int, shared: int, own: int, seed: int = 0) -> list[str]:
    """Texts of groups that share `shared` characters, shuffled."""
    draw = random.Random(seed)
    letters = "abcdefghij"
    texts = []
    for _ in range(num):
        document = "".join(draw.choices(letters, k=shared))
        texts += [document + "".join(draw.choices(letters, k=own)) for _ in range(size)]
    draw.shuffle(texts)
    return texts


def prompts(texts: list[str]) -> list[dict[str, Any]]:
    return [{"prompt": text, "max_tokens": 4} for text in texts]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def estimating(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "EXACT_LINES", 50)


@pytest.mark.usefixtures("estimating")
@pytest.mark.parametrize("kind", ["prompts", "chats", "bodies"])
def test_an_estimate_is_near_the_exact_plan(tmp_path: Path, model: str, kind: str) -> None:
    records: list[Any] = prompts(grouped(40, 10, 640, 64))
    if kind != "prompts":
        records = [{"messages": [{"role": "user", "content": r["prompt"]}]} for r in records]
    if kind == "bodies":
        url = "/v1/chat/completions"
        records = [
            {"custom_id": str(n), "method": "POST", "url": url, "body": r}
            for n, r in enumerate(records)
        ]
    file = write_lines(tmp_path / "batch.jsonl", records)
    about = run_json(file, "--model", model, "--kv-blocks", 700)
    exact = run_json(file, "--model", model, "--kv-blocks", 700, "--exact")
    assert about["is_estimate"] and not exact["is_estimate"]
    for name in ("prompt_tokens", "optimal_saved_tokens"):
        assert about[name] == pytest.approx(exact[name], rel=0.01)
    assert about["optimal_saved_ratio"] == pytest.approx(exact["optimal_saved_ratio"], abs=0.01)
    first, second = about["first_come"]["saved_ratio"], exact["first_come"]["saved_ratio"]
    assert first == pytest.approx(second, abs=0.04)
    assert about["verdict"] == exact["verdict"]
    for name in ("num_requests", "num_groups", "num_duplicates", "max_output_tokens"):
        assert about[name] == exact[name]
    assert about["groups"][0]["num_members"] == 10


@pytest.mark.usefixtures("estimating")
def test_an_estimate_says_that_it_is_one(tmp_path: Path, model: str) -> None:
    file = write_lines(tmp_path / "batch.jsonl", [*prompts(grouped(10, 10, 200, 20)), b"{"])
    result = run(file, "--model", model, "--skip-bad", "--plot", tmp_path / "p.png")
    assert result.exit_code == 0, result.stderr
    assert "estimated: 99 requests were tokenised" in result.stdout and "±" in result.stdout
    assert "1 bad line of" in result.stderr
    refused = run(file, "--model", model, "--skip-bad", "--levels")
    assert refused.exit_code == 2 and "give --exact" in refused.stderr


def test_duplicates_are_counted_on_text(tmp_path: Path, model: str, estimating: None) -> None:
    texts = grouped(30, 2, 300, 7)
    plan = run_json(write_lines(tmp_path / "b.jsonl", prompts(texts + texts[:9])), "--model", model)
    assert plan["num_duplicates"] == 9


def best_disjoint(shared: list[int], begin: int, end: int) -> int:
    """The most that groups which do not overlap save, by trying all; a group is all that share a prefix."""
    most = 0
    for first in range(begin, end):
        for last in range(first + 2, end + 1):
            depth = min(shared[first + 1 : last])
            is_whole = shared[first] < depth and (last == len(shared) or shared[last] < depth)
            if is_whole:
                own = (last - first - 1) * depth
                most = max(most, own + best_disjoint(shared, last, end))
    return most


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=7))
def test_text_groups_are_the_best_choice(shared: list[int]) -> None:
    shared = [0, *shared]
    groups = text_groups(shared)
    assert sum(group.saved_tokens for group in groups) == best_disjoint(shared, 0, len(shared))
    for group in groups:
        inside = shared[group.member + 1 : group.member + group.num_members]
        assert min(inside) >= group.end


def test_an_unbounded_text_cache_hits_all_that_is_shared(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "b.jsonl", prompts(grouped(5, 6, 640, 64)))
    table = text_table(file)
    lines = np.arange(len(table), dtype=np.int64)
    order = prefix_order(table.table, lines)
    whole = simulate_text_lru(table.table, table.text_bytes, order, lines, 1e9)
    assert whole == 5 * 5 * 640
    tight = simulate_text_lru(table.table, table.text_bytes, order, lines, 1500)
    assert 0 < tight < whole
    assert simulate_text_lru(table.table, table.text_bytes, order, order, 1500) == whole


def test_crowding() -> None:
    def again(own: int, output: int, kv_tokens: int, count: int = 10) -> int:
        ones = np.full(count, 1, dtype=np.int64)
        return prompt_tokens_again(ones * own, ones * 0, ones * output, kv_tokens, 4)

    assert again(10, 20, 4 * 30) == 0, "all four who run have room for their outputs"
    assert again(10, 20, 60) > 0
    assert again(10, 100, 5) == 0, "one alone is never sent back"


class TestFiles:
    RECORDS = (
        {"prompt": "x" * 64, "max_tokens": 2},
        {"prompt_token_ids": [5] * 40, "max_tokens": 2},
        "x" * 64,
    )

    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst", "-"])
    def test_packed_and_standard_input(
        self, tmp_path: Path, model: str, suffix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write_lines(tmp_path / "b.jsonl", self.RECORDS)
        data = file.read_bytes()
        source: Any = tmp_path / f"b.jsonl{suffix}"
        if suffix == ".gz":
            source.write_bytes(gzip.compress(data))
        elif suffix == ".zst":
            source.write_bytes(zstandard.compress(data))
        elif suffix == "-":
            source = "-"
            stream = io.BytesIO(data)
            fake = SimpleNamespace(buffer=stream, isatty=lambda: False)
            monkeypatch.setattr("vllm_batchllm.input.source.sys", SimpleNamespace(stdin=fake))
        plan = run_json(source, "--model", model)
        assert (plan["num_requests"], plan["num_duplicates"]) == (3, 1)
        if suffix != "-":
            batch = load_batch(str(source), InputOptions(tokenizer=model, output_tokens=2))
            assert batch.prompts[1] == [5] * 40 and batch.prompts[0] == batch.prompts[2]

    def test_parquet(self, tmp_path: Path, model: str) -> None:
        path = tmp_path / "b.parquet"
        pq.write_table(pa.table({"text": ["x" * 64, "y"]}), path)
        refused = run(path, "--model", model)
        assert refused.exit_code == 2 and "--prompt-column" in refused.stderr
        assert run_json(path, "--model", model, "--prompt-column", "text")["num_requests"] == 2

    @pytest.mark.parametrize(
        ("name", "content", "told"),
        [
            ("a.json", b'[{"prompt": "x"}]', "is one JSON array, not one object a line"),
            ("a.json", b'[\n {"prompt": "x"}\n]', "jq -c '.[]'"),
            ("a.csv", b"id,text\n1,hello\n", "is a table of text, not JSONL"),
            ("a.png", b"\x89PNG\r\n\x1a\n", "is a picture; JSONL is read"),
            ("a.jsonl", b"PAR1....", "let its name end in .parquet"),
            ("a.jsonl", gzip.compress(b"{}", mtime=0), "let its name end in .gz"),
            ("tokenizer.json", b'{\n  "version": "1.0",\n  "added_tokens": []\n}', "model's tokenizer"),
            ("tokenizer.json", b'{"version": "1.0", "added_tokens": []}', "model's tokenizer"),
            ("config.json", b'{\n  "architectures": []\n}', "model's configuration"),
            ("a.json", b'{\n  "prompt": "x"\n}', "jq -c . FILE"),
        ],
    )  # fmt: skip
    def test_a_file_of_another_kind(
        self, tmp_path: Path, model: str, name: str, content: bytes, told: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        result = run(tmp_path / name, "--model", model)
        assert (result.exit_code, result.stdout) == (2, "")
        assert told in result.stderr and result.stderr.count("\n") == 1
        with pytest.raises(ValueError, match=name):
            load_batch(str(tmp_path / name), InputOptions(tokenizer=model))


class TestOptions:
    def test_the_cache_of_a_device(self, tmp_path: Path, model: str) -> None:
        file = write_lines(tmp_path / "b.jsonl", prompts(grouped(2, 2, 64, 8)))
        options = ("--device", "H100-80GB", "--model-shape", "Llama-3.1-8B")
        plan = run_json(file, "--model", model, *options)
        assert 20_000 < plan["first_come"]["num_kv_blocks"] < 32_000
        assert plan["verdict"] == "stock-is-enough" and plan["verdict_reason"]
        assert "verdict" in run(file, "--model", model, *options).stdout

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            (["--device", "H100-80GB"], "give --model-shape"),
            (["--model-shape", "Llama-3.1-8B"], "give --device"),
            (["--device", "H1", "--model-shape", "Llama-3.1-8B"], "unknown device 'H1'"),
            (["--device", "H200", "--model-shape", "nothing"], "unknown model 'nothing'"),
            (["--device", "H200", "--model-shape", "Llama-3.1-8B", "--kv-blocks", 5], "leave --kv"),
            (["--device", "H200", "--model-shape", "Llama-3.1-70B"], "does not fit"),
            (["--split", 2], "give --out-dir"),
            (["--out-dir", "x"], "give --split"),
            (["--split", 0, "--out-dir", "x"], "there must be 1 part or more"),
        ],
    )
    def test_refused(self, tmp_path: Path, model: str, options: list[Any], told: str) -> None:
        file = write_lines(tmp_path / "b.jsonl", prompts(["a", "b"]))
        result = run(file, "--model", model, *options)
        assert result.exit_code == 2 and told in result.stderr, result.stderr

    def test_split(self, tmp_path: Path, model: str) -> None:
        texts = grouped(4, 8, 640, 8)
        file = write_lines(tmp_path / "b.jsonl", prompts(texts))
        result = run(file, "--model", model, "--split", 2, "--out-dir", tmp_path / "parts")
        assert result.exit_code == 0, result.stderr
        parts = sorted((tmp_path / "parts").iterdir())
        assert [part.name for part in parts] == ["b-00000-of-00002.jsonl", "b-00001-of-00002.jsonl"]
        lines = [json.loads(x)["prompt"] for part in parts for x in part.read_text().splitlines()]
        assert sorted(lines) == sorted(texts)
        heads = [
            {json.loads(x)["prompt"][:640] for x in part.read_text().splitlines()} for part in parts
        ]
        assert not heads[0] & heads[1], "no group is cut"

    def test_pictures_and_words_agree(self, tmp_path: Path, model: str) -> None:
        file = write_lines(tmp_path / "b.jsonl", prompts(grouped(2, 4, 640, 8)))
        fields = run_json(file, "--model", model, "--top", 0)
        assert fields["optimal_saved_ratio"] > 0.5 and fields["groups"] == []
        assert no_groups_text(Plan(**fields)) == "2 groups, none of them listed (--top)"
        alone = Plan(**{**fields, "num_groups": 0, "optimal_saved_tokens": 0})
        assert no_groups_text(alone) == "nothing is shared"
        assert run(file, "--model", model, "--top", 0, "--plot", tmp_path / "p.png").exit_code == 0


def test_stdin_that_is_a_terminal(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), stderr=sys.stderr)
    monkeypatch.setattr("vllm_batchllm.input.plain_file.sys", fake)
    result = run("-", "--model", model)
    assert result.exit_code == 2 and "standard input is a terminal" in result.stderr


@pytest.mark.parametrize(
    ("raw", "prompt"),
    [(b'"hello"', "hello"), (b'{"prompt_token_ids": [1, 2], "id": "a"}', [1, 2])],
)
def test_jobs_read_the_same_lines(raw: bytes, prompt: object) -> None:
    line = parse_line(3, raw, LineDefaults(max_tokens=7), 1000)
    assert line.body == {"prompt": prompt, "max_tokens": 7} and line.url == "/v1/completions"
    with pytest.raises(BadLineError, match="only one can be meant"):
        parse_line(3, b'{"prompt_token_ids": [1], "prompt": "x"}', LineDefaults(), 1000)
