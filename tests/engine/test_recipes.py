# SPDX-License-Identifier: Apache-2.0
"""docs/recipes.md: tools that build their engine themselves get ours by ``VLLM_BATCHLLM=1``, and the same answers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from own_process import run_alone
from rollout_run import rollouts
from tiny_engines import StockLLM, documents, scheduler_of, started

BIN = Path(sys.executable).parent
CHOSEN = "Scheduler: batchllm, chosen by VLLM_BATCHLLM"
IN_THE_ENGINE = "Scheduler: batchllm ("
"""What the scheduler itself says, in the process of the engine."""

SMALL = {
    "dtype": "float32",
    "enforce_eager": True,
    "gpu_memory_utilization": 0.2,
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "block_size": 32,
}


def test_a_rollout_loop_gets_ours_and_stocks_samples(tiny_model: str, tmp_path: Path) -> None:
    load = {"prompts": documents(num_documents=4, members=3), "num_steps": 2}
    with started(StockLLM, tiny_model) as llm:
        assert type(scheduler_of(llm)).__name__ == "Scheduler"
        expected = rollouts(llm, **load)
    found = run_alone("rollout_run.py", tiny_model, load, tmp_path, VLLM_BATCHLLM="1")
    assert found["scheduler"] == "BatchLLMScheduler"
    assert found["tokens"] == expected
    assert expected[0] != expected[1], "other seeds, other samples"


def said(words: list[Any], folder: Path, variable: str) -> str:
    """What a tool says, with its engine in a process of its own."""
    ended = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=os.environ | {"VLLM_BATCHLLM": variable, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    text = ended.stdout + ended.stderr
    assert ended.returncode == 0, text[-3000:]
    assert "Unknown vLLM environment variable" not in text
    return text


def check_log(text: str, variable: str) -> None:
    """The front end tells why ours serves, and the engine that it does; without the variable neither."""
    for line in (CHOSEN, IN_THE_ENGINE):
        assert (line in text) == (variable == "1"), line
    engine = [line for line in text.splitlines() if IN_THE_ENGINE in line]
    assert all("EngineCore" in line for line in engine)


@pytest.mark.long
def test_run_batch_gets_ours_and_stocks_answers(smollm2: str, tmp_path: Path) -> None:
    answers = {}
    with (tmp_path / "in.jsonl").open("w") as file:
        for number in range(12):
            prompt = f"Document {number % 3}. " + "It is odd or even. " * 20 + f"Item {number}:"
            question = [{"role": "user", "content": prompt}]
            body = {"model": smollm2, "messages": question, "max_tokens": 6, "temperature": 0}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps(line | {"body": body}) + "\n")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options[options.index("--enforce-eager=True")] = "--enforce-eager"
    for variable in ("0", "1"):
        out = tmp_path / f"out{variable}.jsonl"
        words = [BIN / "vllm", "run-batch", "-i", "in.jsonl", "-o", out, "--model", smollm2]
        check_log(said([*words, *options], tmp_path, variable), variable)
        lines = map(json.loads, out.read_text().splitlines())
        answers[variable] = {
            line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
            for line in lines
        }
    assert answers["1"] == answers["0"] and len(answers["0"]) == 12


TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{shots}}What is {{a}} plus {{a}}? Answer:"
doc_to_choice: "{{choices}}"
doc_to_target: 0
"""


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm-eval is not installed")
def test_lm_evaluation_harness_gets_ours_and_stocks_values(smollm2: str, tmp_path: Path) -> None:
    shots = "".join(f"What is {a} plus {a}? Answer: {a + a}\n" for a in range(2, 20))
    rows = [{"shots": shots, "a": a, "choices": [f" {a + a}", " 1"]} for a in range(20, 26)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(TASK)
    engine = ",".join(f"{name}={value}" for name, value in SMALL.items())
    values = {}
    for variable in ("0", "1"):
        words = [sys.executable, "-m", "lm_eval", "run", "--model", "vllm", "--tasks", "sums"]
        words += ["--model_args", f"pretrained={smollm2},{engine}", "--include_path", "."]
        words += ["--log_samples", "--output_path", f"out{variable}"]
        check_log(said(words, tmp_path, variable), variable)
        (file,) = (tmp_path / f"out{variable}").rglob("samples_*.jsonl")
        values[variable] = [json.loads(line)["resps"] for line in file.read_text().splitlines()]
    assert values["1"] == values["0"] and len(values["0"]) == len(rows)
