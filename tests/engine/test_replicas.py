# SPDX-License-Identifier: Apache-2.0
"""Real engines as Ray actors: one `LLM` over two of them, and jobs on two; killed as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_jobs import answers, chat, close, command, ended, job, wait_for_lines, write
from tiny_engines import ENGINE, documents, generate, greedy, num_computed, started, tokens
from vllm import LLM as StockLLM
from vllm.exceptions import VLLMValidationError

from vllm_batchllm import LLM
from vllm_batchllm.offline.outputs import FailedRequestOutput

ROOM: dict[str, Any] = {"gpu_memory_utilization": 0.2, "num_gpu_blocks_override": 64}


def replica_pids() -> list[int]:
    """Processes of replicas, by the name that Ray gives them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"ReplicaHost" in name:
            found.append(int(folder.name))
    return sorted(found)


@pytest.fixture(scope="module")
def two_engines(tiny_model: str) -> Iterator[Any]:
    llm = LLM(tiny_model, data_parallel_size=2, **ENGINE | ROOM)
    yield llm
    llm._pool.close()


@pytest.fixture(scope="module")
def expected(tiny_model: str) -> Any:
    """Stock's tokens."""
    with started(StockLLM, tiny_model, **ROOM) as stock:
        return tokens(generate(stock, documents()))


class Killer:
    """A progress bar that kills a replica once some answers are there."""

    def __init__(self, **options: Any) -> None:
        self.num_answers = 0
        self.killed: list[int] = []
        self._lock = threading.Lock()

    def __call__(self, **options: Any) -> Killer:
        return self

    def update(self, number: int) -> None:
        with self._lock:
            self.num_answers += number
            if self.num_answers == 4:
                self.killed = replica_pids()[:1]
                os.kill(self.killed[0], signal.SIGKILL)

    def close(self) -> None:
        pass


def test_one_llm_over_two_engines(two_engines: Any, expected: Any) -> None:
    prompts = documents()
    outputs = generate(two_engines, prompts)
    assert tokens(outputs) == expected
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [int(output.request_id) for output in outputs] == list(range(len(prompts)))
    report = two_engines.report()
    assert (report.num_replicas, report.num_requests, report.num_failed) == (2, len(prompts), 0)
    assert report.prompt_tokens == sum(map(len, prompts))
    assert report.computed_prompt_tokens == num_computed(outputs)
    assert 0.6 < report.saved_ratio <= report.optimal_saved_ratio
    assert len(replica_pids()) == 2
    failed, good = generate(two_engines, [[5] * 600, prompts[0]])
    assert isinstance(failed, FailedRequestOutput) and "512" in str(failed.error)
    assert tokens([good]) == expected[:1]
    with pytest.raises(VLLMValidationError, match="512"):
        generate(two_engines, [[5] * 600])
    with pytest.raises(VLLMValidationError, match=r"prompts \(1\) and params \(2\)"):
        two_engines.generate([{"prompt_token_ids": [1, 2]}], [greedy()] * 2)


def test_engines_are_asked_together(two_engines: Any) -> None:
    assert two_engines.get_world_size() == 2
    assert two_engines.get_world_size(include_dp=False) == 1
    assert len(two_engines.collective_rpc("check_health")) == 2
    assert two_engines.reset_prefix_cache() is True
    two_engines.reset_mm_cache()
    numbers = two_engines.enqueue(
        [{"prompt_token_ids": [9] * 40}, {"prompt_token_ids": [8] * 40}], greedy(3)
    )
    numbers += two_engines.enqueue([{"prompt_token_ids": [7] * 40}], greedy(5))
    assert numbers == ["0", "1", "2"]
    lengths = [len(o.outputs[0].token_ids) for o in two_engines.wait_for_completion(use_tqdm=False)]
    assert lengths == [3, 3, 5]
    # A method of an engine that runs a batch by itself (as beam_search does), behind one that was fed.
    alone = ([{"prompt_token_ids": [9] * 40}], greedy(3)), {"use_tqdm": False}
    ((output,),) = two_engines._pool.ask_each("piece", [alone], "generate")
    assert len(output.outputs[0].token_ids) == 3
    with pytest.raises(AttributeError, match=r"LLM\.llm_engine belongs to one engine"):
        _ = two_engines.llm_engine


def test_a_replica_that_is_killed_costs_nothing_but_time(two_engines: Any, expected: Any) -> None:
    killer = Killer()
    inputs = [{"prompt_token_ids": prompt} for prompt in documents()]
    outputs = two_engines.generate(inputs, greedy(), use_tqdm=killer)
    assert killer.killed
    assert tokens(outputs) == expected
    assert killer.num_answers == len(inputs)
    report = two_engines.report()
    assert (report.num_requests, report.num_restarts) == (len(inputs), 1)
    # What the dead one did is in no sum; it may have been killed before it had ended anything.
    assert 0 < report.prompt_tokens <= sum(map(len, documents()))


@pytest.mark.long
def test_a_job_on_two_engines_whose_parts_are_killed(smollm2: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(number) for number in range(120)])
    ended(job(path, tmp_path / "one.jsonl", smollm2), 0)
    output = tmp_path / "two.jsonl"
    process = job(path, output, smollm2, "--replicas", "2")
    wait_for_lines(output, 10, process)
    os.kill(replica_pids()[0], signal.SIGKILL)
    wait_for_lines(output, 40, process)
    process.kill()
    process.wait()
    process = job(path, output, smollm2, "--replicas", "2")
    ended(process, 0)
    one, two = answers(tmp_path / "one.jsonl"), answers(output)
    assert len(output.read_text().splitlines()) == 120
    assert one.keys() == two.keys()
    assert all(close(one[name], two[name]) for name in one)
    deadline = time.monotonic() + 30
    while replica_pids() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert replica_pids() == []
    status = json.loads((tmp_path / "two.jsonl.status.json").read_text())
    assert status["state"] == "done"


@pytest.mark.long
def test_what_cannot_be_is_said_at_once(smollm2: str, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [chat(0)])
    whole = command("vllm-batchllm", "run", path, tmp_path / "out.jsonl", "--model", smollm2)

    def refused(*more: str) -> str:
        done = subprocess.run(
            [*whole, *more], capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 64, done.stderr[-3000:]
        return done.stderr

    cores = len(os.sched_getaffinity(0))
    assert f"room for {cores}" in refused("--replicas", str(cores + 1))
    assert "has not answered" in refused("--replicas", "2", "--ray-address", "127.0.0.1:9")
    assert "needs --replicas 2" in refused("--ray-address", "auto")
