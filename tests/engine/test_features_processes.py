# SPDX-License-Identifier: Apache-2.0
"""Engines in processes of their own: two workers, two engines, or n-gram drafts.

The answers are those of one stock engine without any of it. Drafts are here because their
compiler, once it is loaded, lets no further vLLM engine start in the same process.
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

from vllm_batchllm import LLM
from vllm_batchllm.plugin import BATCHLLM_SCHEDULER

PROMPTS = documents(num_documents=5, members=4)


@pytest.fixture(scope="module")
def expected(tiny_model: str) -> list[list[int]]:
    """Stock's answers, one engine on one device."""
    with started(StockLLM, tiny_model) as stock:
        return [answer for (answer,) in tokens(generate(stock, PROMPTS, greedy(NUM_TOKENS)))]


def run(model: str, folder: Path, **given: Any) -> dict[str, Any]:
    """Answers and counters of our scheduler with the engine arguments ``given``."""
    arguments = ENGINE | {"distributed_executor_backend": "mp", "disable_log_stats": False}
    arguments |= {"scheduler_cls": BATCHLLM_SCHEDULER} | given
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
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(files[-1].read_text())
    return result


def test_two_tensor_parallel_workers_answer_as_one(tiny_model, tmp_path, expected) -> None:
    result = run(tiny_model, tmp_path, tensor_parallel_size=2)
    assert result["tokens"] == expected


def test_two_data_parallel_engines_share_the_requests(tiny_model, tmp_path, expected) -> None:
    result = run(tiny_model, tmp_path, data_parallel_size=2)
    assert result["tokens"] == expected
    admitted = result["figures"]["vllm_batchllm:admitted_requests_total"]
    assert sorted(admitted) == ["0", "1"] and all(admitted.values()), admitted
    assert sum(admitted.values()) == len(PROMPTS)


def test_llm_refuses_data_parallelism_in_one_process_as_stock_does(tiny_model) -> None:
    for cls in (StockLLM, LLM):
        with pytest.raises(ValueError, match=r"data_parallel_size=2\) is not supported"):
            cls(tiny_model, **ENGINE, data_parallel_size=2)


def test_ngram_drafts_are_checked_and_some_are_right(tiny_model, tmp_path, expected) -> None:
    drafting = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    result = run(tiny_model, tmp_path, speculative_config=drafting)
    assert result["tokens"] == expected
    drafted, accepted = (
        sum(result["figures"][f"vllm:spec_decode_num_{name}_tokens_total"].values())
        for name in ("draft", "accepted")
    )
    assert 0 < accepted < drafted
