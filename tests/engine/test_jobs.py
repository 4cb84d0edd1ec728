# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm run` with real engines: answers of `vllm run-batch`, kills, poison, hangs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
OPTIONS = [
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "768", "--block-size", "32"),
    *("--num-gpu-blocks-override", "64", "--max-num-seqs", "6", "--gpu-memory-utilization", "0.2"),
    *("--served-model-name", "smol"),
]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"logprobs": True, "top_logprobs": 2},
    {"n": 2, "seed": 3, "temperature": 0.0},
    {"stop": ["the"], "max_tokens": 12},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"max_tokens": 100_000},
    {"model": "another"},
]


def chat(number: int, **fields: Any) -> dict[str, Any]:
    document = f"Document {number % 5}. " + f"The number {number % 5} is odd or even. " * 20
    message = {"role": "user", "content": f"{document} Question {number}?"}
    body = {"model": "smol", "temperature": 0, "max_tokens": 6, "messages": [message], **fields}
    return {"custom_id": f"r{number}", "method": "POST", "url": CHAT, "body": body}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(name: str, *arguments: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name(name)), *map(str, arguments)]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(HERE), *(path for path in sys.path if path)])
    return os.environ | {"PYTHONPATH": paths, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}


def job(path: Path, output: Path, model: str, *more: str) -> subprocess.Popen[str]:
    whole = command("vllm-batchllm", "run", path, output, "--model", model, *OPTIONS, *more)
    return subprocess.Popen(whole, env=environment(), stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int) -> str:
    _, errors = process.communicate(timeout=400)
    assert process.returncode == code, errors[-4000:]
    return errors


def stable(line: dict[str, Any]) -> Any:
    """What does not differ between two runs of the same request."""
    if line["error"] is not None:
        return line["response"] and line["response"]["status_code"]
    body = line["response"]["body"]
    return {key: body.get(key) for key in ("choices", "usage", "model", "object")}


def answers(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {line["custom_id"]: stable(line) for line in found}
    assert len(by_id) == len(found), "an answer stands twice"
    return by_id


def close(left: Any, right: Any) -> bool:
    """Equal, but for the last digits of log-probabilities, which depend on who else was in a step."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(close, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-3, abs_tol=1e-4)
    return bool(left == right)


def wait_for_lines(output: Path, num_lines: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not output.exists() or output.read_bytes().count(b"\n") < num_lines:
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < end, "no answer came"
        time.sleep(0.02)


def processes_of(job_pid: int) -> list[int]:
    """Every process that was started for a job and still lives."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if f"VLLM_BATCHLLM_JOB_PID={job_pid}".encode() in variables and folder.name.isdecimal():
            found.append(int(folder.name))
    return found


def test_a_killed_job_goes_on_and_leaves_no_engine_behind(smollm2: str, tmp_path: Path) -> None:
    lines = [chat(n) for n in range(60)]
    lines.append(
        {
            **chat(60),
            "url": COMPLETIONS,
            "body": {"prompt": "One, two,", "max_tokens": 3, "temperature": 0},
        }
    )
    lines += [{**chat(61), "url": "/v1/nowhere"}, {**chat(62), "body": {"messages": 5}}]
    path, output = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    process = job(path, output, smollm2)
    wait_for_lines(output, 8, process)
    process.kill()
    process.wait()
    kept = output.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    end = time.monotonic() + 20
    while processes_of(process.pid):
        assert time.monotonic() < end, "its engine lives on"
        time.sleep(0.1)
    said = ended(job(path, output, smollm2, "--report", str(tmp_path / "page")), 2)
    assert "from earlier runs" in said and (tmp_path / "page" / "index.html").exists()
    assert output.read_bytes().startswith(kept)
    found = answers(output)
    assert len(found) == len(lines)
    assert found["r60"]["choices"][0]["text"] and found["r60"]["object"] == "text_completion"
    errors = {
        one["custom_id"]: one["error"]
        for one in map(json.loads, output.read_text().splitlines())
        if one["error"]
    }
    assert sorted(errors) == ["r61", "r62"]
    assert "'/v1/nowhere' is no endpoint" in errors["r61"]["message"]
    assert "the body cannot be read" in errors["r62"]["message"]


@pytest.mark.long
@pytest.mark.parametrize("after_s", [12, 15, 18, 21])
def test_a_job_that_is_killed_while_its_engine_starts_leaves_nothing_behind(
    smollm2: str, tmp_path: Path, after_s: float
) -> None:
    process = job(write(tmp_path / "in.jsonl", [chat(0)]), tmp_path / "out.jsonl", smollm2)
    time.sleep(after_s)
    process.kill()
    process.wait()
    end = time.monotonic() + 15
    while processes_of(process.pid):
        assert time.monotonic() < end, "a process of it lives on"
        time.sleep(0.1)


@pytest.mark.long
def test_answers_are_those_of_run_batch(smollm2: str, tmp_path: Path) -> None:
    lines = [chat(n, **VARIANTS[n % len(VARIANTS)]) for n in range(70)]
    path = write(tmp_path / "in.jsonl", lines)
    theirs, ours, stocks = (tmp_path / name for name in ("theirs", "ours", "stocks"))
    run_batch = command("vllm", "run-batch", "-i", path, "-o", theirs, "--model", smollm2, *OPTIONS)
    subprocess.run(run_batch, env=environment(), check=True, capture_output=True, timeout=400)
    ended(job(path, ours, smollm2, "--keep-order"), 2)
    ended(job(path, stocks, smollm2, "--scheduler", "stock"), 2)
    expected = answers(theirs)
    for found in (answers(ours), answers(stocks)):
        assert not [name for name in expected if not close(found.get(name), expected[name])]
        assert found.keys() == expected.keys()
    assert list(answers(ours)) == [f"r{n}" for n in range(70)]


@pytest.mark.long
def test_a_line_that_kills_and_one_that_hangs_cost_only_themselves(
    smollm2: str, tmp_path: Path
) -> None:
    lines = [chat(n) for n in range(30)]
    lines[7]["body"]["seed"] = 666
    path, output = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    deadly = ("--scheduler-cls", "poison_scheduler.create_scheduler", "--stall-s", "8")
    ended(job(path, output, smollm2, *deadly), 2)
    errors = {line: found for line, found in answers(output).items() if found in (None, 500)}
    assert list(errors) == ["r7"] and len(answers(output)) == 30
    lines[7]["body"]["seed"] = 777
    path, output = write(tmp_path / "in2.jsonl", lines), tmp_path / "out2.jsonl"
    said = ended(job(path, output, smollm2, *deadly), 2)
    assert [line for line, found in answers(output).items() if found in (None, 500)] == ["r7"]
    assert "restarts of the engine" in said


@pytest.mark.long
def test_an_engine_that_is_killed_is_started_again(smollm2: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl", [chat(n, max_tokens=40, ignore_eos=True) for n in range(40)]
    )
    output = tmp_path / "out.jsonl"
    process = job(path, output, smollm2)
    wait_for_lines(output, 4, process)
    for child in processes_of(process.pid):
        if child != process.pid:
            os.kill(child, signal.SIGKILL)
    ended(process, 0)
    assert len(answers(output)) == 40


@pytest.mark.long
def test_a_job_that_is_stopped_says_so_and_goes_on(smollm2: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl", [chat(n, max_tokens=40, ignore_eos=True) for n in range(80)]
    )
    output = tmp_path / "out.jsonl"
    process = job(path, output, smollm2)
    wait_for_lines(output, 4, process)
    process.send_signal(signal.SIGTERM)
    assert "run the same command again" in ended(process, 75)
    assert 4 <= len(answers(output)) < 80
    ended(job(path, output, smollm2), 0)
    assert len(answers(output)) == 80
