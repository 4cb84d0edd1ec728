# SPDX-License-Identifier: Apache-2.0
"""A real server under abuse stays up, answers what it accepted, and keeps nothing of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from abuse import abuse
from abuse_cases import bad_hints, bad_parameters
from live_server import MODEL, SERVED_NAME, VLLM, launched, serving

SCALE = 0.2
RUN_BATCH = (
    "--dtype",
    "float32",
    "--enforce-eager",
    "--block-size",
    "32",
    "--max-model-len",
    "768",
)


@pytest.fixture(scope="module")
def batch_runs(smollm2: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """``vllm run-batch`` over one file with both schedulers, beside each other; not waited for."""
    folder = tmp_path_factory.mktemp("batch")
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in batch_lines()))
    runs: dict[str, Any] = {}
    for scheduler in ("stock", "batchllm"):
        out, log = folder / f"{scheduler}.jsonl", folder / f"{scheduler}.log"
        words = [VLLM, "run-batch", "-i", questions, "-o", out, "--model", smollm2]
        words += ["--served-model-name", SERVED_NAME, "--scheduler", scheduler, *RUN_BATCH]
        words += ["--max-num-seqs", "4", "--num-gpu-blocks-override", "48"]
        runs[scheduler] = (launched(words, folder, log), out, log)
    yield runs
    for process, _, _ in runs.values():
        process.kill()
        process.wait()


def batch_lines() -> list[dict[str, Any]]:
    """An OpenAI batch: shared prefixes, greedy and seeded, and lines that cannot be served."""

    def line(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
        usual = {"model": SERVED_NAME, "max_tokens": 8, "temperature": 0}
        return {"custom_id": custom_id, "method": "POST", "url": url, "body": usual | body}

    def asking(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": text}]

    good = [
        line(
            f"document {d}, question {q}",
            messages=asking(f"Document {d}. " + f"Item {d} is blue. " * 20 + f"Which is item {q}?"),
            **({"temperature": 0.9, "seed": 7 * q} if q == 2 else {}),
        )
        for q in range(4)
        for d in range(5)
    ]
    bad = {
        "unknown model": line("unknown model", messages=asking("Hello"), model="nobody"),
        "too long": line("too long", messages=asking("word " * 2000)),
        "unknown url": line("unknown url", url="/v1/poems", messages=asking("Hello")),
        "streaming": line("streaming", messages=asking("Hello"), stream=True),
    }
    return [*good[:7], *bad.values(), *good[7:]]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the driver; the batch runs start up at the same time."""
    folder = tmp_path_factory.mktemp("abuse")
    with serving(MODEL, folder, "--shutdown-timeout", "120") as server:
        return asyncio.run(abuse(server, SCALE)) | {"log": server.log.read_text()}


def test_nothing_is_lost_nothing_leaks_and_the_figures_agree(figures) -> None:
    """Lost: neither answered in full, nor refused with a reason, nor given up by its client."""
    total = figures["total"]
    assert figures["problems"] == []
    assert total["lost"] == 0 == total["leaked_blocks"]
    assert total["sent"] == total["answered"] + total["refused"] + total["aborted"]
    assert total["sent"] > 400
    assert all(phase["lost"] == 0 for phase in figures["phases"].values())


def test_every_kind_of_request_was_there(figures) -> None:
    phases = figures["phases"]
    assert phases["mixed"]["answered"] == phases["mixed"]["sent"] == 60
    assert phases["aborts"]["aborted"] >= 8 and phases["aborts"]["answered"] >= 8
    assert phases["vanishing"]["aborted"] >= 10 and phases["vanishing"]["answered"] >= 3
    assert phases["unicode"]["answered"] >= 17
    assert phases["cancelled"]["aborted"] >= 150
    assert phases["terminated"]["answered"] == phases["terminated"]["sent"] >= 20
    before_the_end = figures["total"]["answered"] - phases["terminated"]["answered"]
    assert figures["metrics"]["vllm_batchllm:admitted_requests_total"] >= before_the_end > 90


def test_bad_requests_are_refused_one_by_one(figures) -> None:
    bad = figures["phases"]["bad"]
    assert bad["refused"] == bad["sent"] >= len(bad_parameters()) + len(bad_hints())


def test_only_the_hints_of_ours_end_as_errors_of_the_server(figures) -> None:
    names = {case.split(":")[0] for case in figures["phases"]["bad"]["server_errors"]}
    assert names <= set(bad_hints()), "a bad request that vLLM refuses became a server error"


def test_a_refused_hint_cannot_forge_or_flood_the_log(figures) -> None:
    ours = [line for line in figures["log"].splitlines() if "ends with an error" in line]
    assert len(ours) >= 5 and max(map(len, ours)) < 1000
    assert not re.search(r"^ERROR the log was forged", figures["log"], re.MULTILINE)


def read_answers(runs: dict[str, Any], scheduler: str) -> dict[str, Any]:
    process, out, log = runs[scheduler]
    process.wait(timeout=300)
    assert process.returncode == 0, Path(log).read_text()[-3000:]
    lines = [json.loads(line) for line in Path(out).read_text().splitlines()]
    assert len(lines) == len(batch_lines()), "a line was lost"
    return {line["custom_id"]: line for line in lines}


@pytest.mark.long
def test_run_batch_gives_stocks_answers(batch_runs) -> None:
    stock, ours = (read_answers(batch_runs, name) for name in ("stock", "batchllm"))
    assert list(ours) == list(stock), "order of lines"
    num_answered = 0
    for custom_id, expected in stock.items():
        mine = ours[custom_id]
        assert (mine["error"] is None) == (expected["error"] is None), custom_id
        if expected["error"] is not None:
            continue
        for answer in (mine, expected):
            assert answer["response"]["status_code"] == 200
        choices = [answer["response"]["body"]["choices"] for answer in (mine, expected)]
        assert choices[0] == choices[1], custom_id
        num_answered += 1
    assert num_answered == 20
    assert "Scheduler: batchllm" in batch_runs["batchllm"][2].read_text()
    assert "Scheduler: batchllm" not in batch_runs["stock"][2].read_text()


@pytest.mark.long
def test_run_batch_goes_on_behind_bad_lines_as_stock_does(batch_runs) -> None:
    stock, ours = (read_answers(batch_runs, name) for name in ("stock", "batchllm"))
    for custom_id in ("unknown model", "too long", "unknown url", "streaming"):
        errors = [json.dumps(answers[custom_id]["error"]) for answers in (stock, ours)]
        assert errors[0] == errors[1] != "null", custom_id
