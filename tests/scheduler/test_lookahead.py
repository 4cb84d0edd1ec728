# SPDX-License-Identifier: Apache-2.0
"""Limited look-ahead: what the benchmark claims, on a small trace; and how it reads traces."""

from __future__ import annotations

import gzip
import json
import random
from itertools import count
from pathlib import Path

import pytest
import typer
from lookahead import lookahead
from lookahead_arms import Workload, arms_for, run

from vllm_batchllm.input.plain_file import plain_file
from vllm_batchllm.input.trace import (
    TraceError,
    num_distinct_blocks,
    output_of,
    prompt_of,
    read_trace,
)
from vllm_batchllm.prefix.best_saving import optimal_saving

BLOCK_SIZE = 32
GOOD = {"timestamp": 5, "input_length": 700, "output_length": 9, "hash_ids": [0, 3]}


def write_trace(path: Path, num_conversations: int = 150) -> Path:
    """Conversations that come back; every turn is the last one's prompt and a few blocks more.

    Their lengths are skewed as people's are: most are short and few, some are very long.
    """
    rng, ids = random.Random(0), count(1)
    requests = []
    for _ in range(num_conversations):
        blocks, time_ms = [0], rng.random() * 1000
        num_new = round(rng.lognormvariate(1.5, 1)) + 1
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            blocks += [next(ids) for _ in range(num_new)]
            length = 512 * len(blocks) - rng.randrange(512)
            turn = {"input_length": length, "output_length": 64, "hash_ids": list(blocks)}
            requests.append({"timestamp": time_ms, **turn})
            num_new, time_ms = rng.randint(1, 3), time_ms + rng.uniform(100, 300)
    requests.sort(key=lambda request: request["timestamp"])
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def saved_shares(
    path: Path, model: str, max_num_seqs: int, waiting: int | None
) -> tuple[dict[str, float], float]:
    """The share saved by every arm, net of what preemptions cost, and the best possible one."""
    traced = read_trace(path)
    work = Workload(
        prompts=[prompt_of(request, BLOCK_SIZE) for request in traced],
        outputs=[output_of(request, BLOCK_SIZE) for request in traced],
        block_size=BLOCK_SIZE,
        num_blocks=num_distinct_blocks(traced) // 10,
        max_num_batched_tokens=512,
    )
    outcomes = {
        arm.name: run(arm, model, work, max_num_seqs, waiting)
        for arm in arms_for(["dfs", "short-first"])
    }
    ceiling = optimal_saving(work.prompts, BLOCK_SIZE).saved_ratio
    return {name: outcome.net_saved_share for name, outcome in outcomes.items()}, ceiling


@pytest.mark.parametrize("max_num_seqs", [1, 4])
def test_keeping_what_is_in_sight_saves_more_and_short_first_more_still(
    llama, tmp_path, max_num_seqs
) -> None:
    path = write_trace(tmp_path / "trace.jsonl")
    saved, ceiling = saved_shares(path, llama, max_num_seqs, waiting=28)
    assert saved["dfs, our pool"] > 1.8 * saved["arrival, LRU"]
    assert saved["dfs, our pool"] > 1.4 * saved["dfs, LRU"]
    assert saved["short-first, our pool"] > 1.05 * saved["dfs, our pool"]
    assert max(saved.values()) <= ceiling


def test_with_everything_in_sight_the_ceiling_is_reached(llama, tmp_path) -> None:
    path = write_trace(tmp_path / "trace.jsonl")
    saved, ceiling = saved_shares(path, llama, max_num_seqs=1, waiting=None)
    for order in ("dfs", "short-first"):
        assert saved[f"{order}, our pool"] == pytest.approx(ceiling)
    assert saved["arrival, LRU"] < ceiling / 2


def test_the_command_prints_and_writes_the_same_runs(tmp_path, capsys) -> None:
    path = write_trace(tmp_path / "trace.jsonl", num_conversations=10)
    lookahead(
        path,
        requests=20,
        waiting=["4", "all"],
        max_num_seqs=[2],
        order=["dfs"],
        kv_share=0.5,
        max_num_batched_tokens=512,
        block_size=16,
        json_file=tmp_path / "figures.json",
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [r["max_waiting"] for r in figures["runs"]] == [4] * 4 + [None] * 4
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 + len(figures["runs"])
    assert f"| {figures['runs'][0]['saved_share']:.1%} |" in table[4]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"waiting": ["many"]}, "--waiting must be an integer from 1 or `all`, not 'many'"),
        ({"order": ["lifo"]}, "--order 'lifo' is unknown; known: dfs, "),
        ({"kv_share": 0.01}, "--kv-share 0.01 makes 2 blocks, but the longest request needs "),
        ({"trace": Path("nowhere.jsonl")}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path, capsys, options, reason) -> None:
    path = write_trace(tmp_path / "trace.jsonl", num_conversations=20)
    with pytest.raises(typer.Exit) as stopped:
        lookahead(**{"trace": path, **options})
    assert stopped.value.exit_code == 2
    assert reason in capsys.readouterr().err


def test_prompts_share_what_their_ids_share_and_lengths_are_scaled(tmp_path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    other = {**GOOD, "input_length": 1024, "output_length": 0}
    path.write_bytes(gzip.compress(f"{json.dumps(GOOD)}\n\n{json.dumps(other)}\n".encode()))
    with plain_file(str(path)) as plain:
        first, second = read_trace(plain)
        assert read_trace(plain, limit=1) == [first]
    assert prompt_of(first, 32) == [0] * 32 + [3] * 11, "188 of 512 tokens are 11 of 32"
    assert prompt_of(second, 32) == [0] * 32 + [3] * 32
    assert (output_of(first, 32), output_of(second, 32)) == (1, 1)
    assert num_distinct_blocks([first, second]) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object but list"),
        ({"input_length": None}, '"input_length" must be an integer from 0, not None'),
        ({"output_length": -1}, '"output_length" must be an integer from 0, not -1'),
        ({"hash_ids": [0, True]}, '"hash_ids" must be a list of integers'),
        ({"hash_ids": [0]}, '"input_length" 700 needs 2 "hash_ids" of 512 tokens, not 1'),
        ({"input_length": 0, "hash_ids": []}, '"input_length" is 0: a request without a prompt'),
        ({"input_length": 0, "hash_ids": [1]}, '"input_length" is 0: a request without a prompt'),
    ],
)
def test_a_bad_line_is_named_with_file_number_and_reason(tmp_path, line, reason) -> None:
    path = tmp_path / "trace.jsonl"
    bad = line if isinstance(line, str) else json.dumps({**GOOD, **line})
    path.write_text(f"{json.dumps(GOOD)}\n{bad}\n")
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert reason in str(raised.value)


def test_a_missing_field_is_named(tmp_path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"input_length": 5, "hash_ids": [0]}\n')
    with pytest.raises(TraceError, match='line 1: "output_length" is missing'):
        read_trace(path)
