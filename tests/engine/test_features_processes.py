# SPDX-License-Identifier: Apache-2.0
"""Engines in processes of their own: two workers, two engines, two stages, or n-gram drafts.

The answers are those of one stock engine without any of it, and stock's with it. Drafts are here
because their compiler, once it is loaded, lets no further vLLM engine start in the same process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from separate_run import NUM_TOKENS
from tiny_engines import ENGINE, documents, generate, greedy, started, tokens
from vllm import LLM as StockLLM

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER

PROMPTS = documents(num_documents=5, members=4)


@pytest.fixture(scope="module")
def expected(tiny_model: str) -> list[list[int]]:
    """Stock's answers, one engine on one device."""
    with started(StockLLM, tiny_model) as stock:
        return [answer for (answer,) in tokens(generate(stock, PROMPTS, greedy(NUM_TOKENS)))]


def run(model: str, folder: Path, **given: Any) -> dict[str, Any]:
    """Answers and counters of a scheduler, ours by default, with the engine arguments ``given``."""
    done, result = launched(model, folder, {"scheduler_cls": BATCHLLM_SCHEDULER} | given)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    content: dict[str, Any] = json.loads(result.read_text())
    return content


def launched(
    model: str, folder: Path, given: dict[str, Any]
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The process that has run ``PROMPTS`` on an engine, and the file it left if it could."""
    arguments = ENGINE | {"distributed_executor_backend": "mp", "disable_log_stats": False} | given
    files = [folder / f"{name}.json" for name in ("prompts", "arguments", "result")]
    for file, content in zip(files, (PROMPTS, arguments), strict=False):
        file.write_text(json.dumps(content))
    script = Path(__file__).with_name("separate_run.py")
    done = subprocess.run(
        [sys.executable, script, model, *files],
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        check=False,
    )
    return done, files[-1]


STOCK = pytest.param(None, marks=pytest.mark.long, id="stock")
"""vLLM alone, a control: what it answers is compared with in the other test, and it is left to `make test-long`."""


@pytest.mark.parametrize("scheduler", [STOCK, pytest.param(BATCHLLM_SCHEDULER, id="ours")])
def test_two_tensor_parallel_workers_answer_as_one(
    tiny_model, tmp_path, expected, scheduler
) -> None:
    result = run(tiny_model, tmp_path, tensor_parallel_size=2, scheduler_cls=scheduler)
    assert result["tokens"] == expected


@pytest.mark.long
def test_a_pipeline_dies_in_its_first_step_with_stock_alone(tiny_model, tmp_path) -> None:
    """On a CPU vLLM's second stage has no room for what the first one sends. If this fails, vLLM
    is mended: compare the answers, as for tensor parallelism."""
    done, result = launched(tiny_model, tmp_path, {"pipeline_parallel_size": 2})
    assert done.returncode != 0 and not result.exists()
    assert "assert self.intermediate_tensors is not None" in done.stdout + done.stderr


@pytest.mark.long
def test_stock_data_parallel_engines_answer_as_one(tiny_model, tmp_path, expected) -> None:
    result = run(tiny_model, tmp_path, data_parallel_size=2, scheduler_cls=None)
    assert result["tokens"] == expected


def test_two_data_parallel_engines_share_the_requests(tiny_model, tmp_path, expected) -> None:
    result = run(tiny_model, tmp_path, data_parallel_size=2)
    assert result["tokens"] == expected
    admitted = result["figures"]["vllm_batchllm:admitted_requests_total"]
    assert sorted(admitted) == ["0", "1"] and all(admitted.values()), admitted
    assert sum(admitted.values()) == len(PROMPTS)


def test_stock_refuses_data_parallelism_in_one_process(tiny_model) -> None:
    """If this fails, vLLM has engines of its own for what `ReplicatedLLM` does: compare them."""
    with pytest.raises(ValueError, match=r"data_parallel_size=2\) is not supported"):
        StockLLM(tiny_model, **ENGINE, data_parallel_size=2)


@pytest.mark.parametrize("scheduler", [STOCK, pytest.param(BATCHLLM_SCHEDULER, id="ours")])
def test_ngram_drafts_are_checked_and_some_are_right(
    tiny_model, tmp_path, expected, scheduler
) -> None:
    drafting = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    result = run(tiny_model, tmp_path, speculative_config=drafting, scheduler_cls=scheduler)
    assert result["tokens"] == expected
    drafted, accepted = (
        sum(result["figures"][f"vllm:spec_decode_num_{name}_tokens_total"].values())
        for name in ("draft", "accepted")
    )
    assert 0 < accepted < drafted


def test_a_request_that_cannot_be_sent_fails_alone_and_nobody_waits_for_it(tiny_model) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("late_failure.py"), tiny_model],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(told) == {
        "in_its_own_process": True,
        "finish_reasons": ["length", "error"],
        "error": "OverflowError",
        "unfinished": 0,
    }
