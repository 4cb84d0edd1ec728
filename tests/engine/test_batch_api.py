# SPDX-License-Identifier: Apache-2.0
"""The Batch API of a real ``vllm serve``, driven by the real `openai` client; killed in the middle and started again."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import SERVED_NAME, SMALL, LiveServer, serving
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI
from postgres_server import postgres, why_not

URL = "/v1/chat/completions"
KEYS = ("--api-key", "alice-key", "bob-key")
FINISHED = ("completed", "failed", "expired", "cancelled")


def start(model: str, folder: Path, name: str, *words: str) -> Any:
    """A server over the same batches; its log is ``name``'s."""
    (folder / name).mkdir()
    options = (*SMALL, "--enable-batch-api", "--batch-dir", str(folder / "batches"), *KEYS, *words)
    return serving(model, folder / name, options=options)


@pytest.fixture(
    scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)]
)
def database(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """Words of the command line that choose it."""
    if request.param == "sqlite":
        yield ()
        return
    if reason := why_not():
        pytest.skip(reason)
    with postgres() as running:
        yield "--batch-db", running.url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, database: tuple[str, ...]) -> Path:
    """Of the batches in this database."""
    return tmp_path_factory.mktemp("batch-api")


@pytest.fixture(scope="module")
def server(smollm2: str, folder: Path, database: tuple[str, ...]) -> Iterator[LiveServer]:
    with start(smollm2, folder, "first", *database) as running:
        yield running


def client(server: LiveServer, key: str = "alice-key") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, timeout=60)


def lines(name: str, count: int, max_tokens: int = 8, **body: Any) -> bytes:
    document = f"This is the document of {name}. " * 12
    made = []
    for number in range(count):
        messages = [{"role": "user", "content": f"{document}\nQuestion {number}: what is it?"}]
        whole = {"model": SERVED_NAME, "messages": messages, "temperature": 0}
        whole |= {"max_tokens": max_tokens, "ignore_eos": True, **body}
        made.append({"custom_id": f"{name}-{number}", "method": "POST", "url": URL, "body": whole})
    return "".join(json.dumps(one) + "\n" for one in made).encode()


def submit(api: OpenAI, content: bytes, **fields: Any) -> Any:
    file = api.files.create(file=("in.jsonl", content), purpose="batch")
    asked = {"endpoint": URL, "completion_window": "24h"} | fields
    return api.batches.create(input_file_id=file.id, **asked)


def until(api: OpenAI, batch_id: str, ready: Any, timeout_s: float = 120) -> Any:
    deadline = time.monotonic() + timeout_s
    while not ready(batch := api.batches.retrieve(batch_id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
    return batch


def is_finished(batch: Any) -> bool:
    return batch.status in FINISHED


def answers(api: OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    records = [json.loads(one) for one in api.files.content(file_id).text.splitlines()]
    by_id = {record["custom_id"]: record for record in records}
    assert len(by_id) == len(records), "a line was answered twice"
    return by_id


def test_keys_are_asked_for_and_see_only_their_own(server) -> None:
    with pytest.raises(AuthenticationError):
        client(server, "no-key").files.list()
    assert httpx.post(f"{server.url}/v1/batches", json={}).status_code == 401
    alice, bob = client(server), client(server, "bob-key")
    file = alice.files.create(file=("in.jsonl", lines("mine", 1)), purpose="batch")
    with pytest.raises(NotFoundError):
        bob.files.retrieve(file.id)
    assert file.id not in [one.id for one in bob.files.list()]
    with pytest.raises(NotFoundError):
        bob.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
    assert alice.files.delete(file.id).deleted


def test_two_batches_at_once_and_interactive_beside(server) -> None:
    api = client(server)
    bad = lines("bad", 1, max_tokens=-1)
    first = submit(api, lines("one", 30) + bad, metadata={"nr": "1"})
    second = submit(api, lines("two", 30))
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    answer = api.chat.completions.create(
        model=SERVED_NAME, messages=ask, max_tokens=12, temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    seen = api.batches.retrieve(first.id), api.batches.retrieve(second.id)
    one, two = (until(api, batch.id, is_finished) for batch in (first, second))
    assert any(not is_finished(batch) for batch in seen), "interactive has not waited for both"
    assert one.status == two.status == "completed" and one.metadata == {"nr": "1"}
    assert (one.request_counts.completed, one.request_counts.failed) == (30, 1)
    assert max(one.in_progress_at, two.in_progress_at) <= min(one.completed_at, two.completed_at)
    found = answers(api, one.output_file_id)
    assert set(found) == {f"one-{n}" for n in range(30)}
    body = found["one-3"]["response"]["body"]
    assert body["usage"]["completion_tokens"] == 8 and body["object"] == "chat.completion"
    assert set(answers(api, one.error_file_id)) == {"bad-0"}
    listed = [batch.id for batch in api.batches.list(limit=1)]
    assert listed[:2] == [second.id, first.id]
    time.sleep(1)
    assert server.metrics()["vllm_batchllm:batch_api_lines_total"] == 61
    log = server.log.read_text()
    assert "Batch API: /v1/files and /v1/batches" in log and "priority" in log


def test_errors_are_the_public_apis(server) -> None:
    api = client(server)
    with pytest.raises(BadRequestError, match="completion_window = 'soon'"):
        submit(api, lines("x", 1), completion_window="soon")
    with pytest.raises(BadRequestError, match="/v1/magic"):
        submit(api, lines("x", 1), endpoint="/v1/magic")
    wrong = submit(api, lines("x", 2, model="gpt-4o"))
    failed = until(api, wrong.id, is_finished)
    assert failed.status == "failed" and "gpt-4o" in failed.errors.data[0].message


def test_cancel(server) -> None:
    api = client(server)
    batch = submit(api, lines("cancelled", 200, max_tokens=24))
    until(api, batch.id, lambda now: now.request_counts.completed > 0)
    assert api.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = until(api, batch.id, is_finished)
    assert done.status == "cancelled"
    found = answers(api, done.output_file_id)
    assert 0 < len(found) == done.request_counts.completed < 200
    assert done.request_counts.failed == 0 and done.error_file_id is None


def test_killed_in_the_middle_it_goes_on_by_itself(server, smollm2, folder, database) -> None:
    api = client(server)
    batch = submit(api, lines("killed", 60, max_tokens=10))
    waiting = [submit(api, lines(f"later{n}", 3)) for n in range(2)]
    until(api, batch.id, lambda now: now.request_counts.completed >= 5)
    before = api.batches.retrieve(batch.id).request_counts.completed
    server.remember_family()
    for process in reversed(server.family):
        process.send_signal(signal.SIGKILL)
    server.process.wait(30)
    with start(smollm2, folder, "second", *database) as again:
        api = client(again)
        done = until(api, batch.id, is_finished)
        assert done.status == "completed" and before < 60
        found = answers(api, done.output_file_id)
        assert set(found) == {f"killed-{n}" for n in range(60)} and done.error_file_id is None
        for other in waiting:
            assert until(api, other.id, is_finished).request_counts.completed == 3


@pytest.mark.long
def test_ended_in_order_what_is_cut_short_is_no_answer(smollm2, tmp_path) -> None:
    with start(smollm2, tmp_path, "first") as running:
        api = client(running)
        batch = submit(api, lines("ended", 200, max_tokens=20))
        until(api, batch.id, lambda now: now.request_counts.completed >= 3)
        assert running.terminate() is not None
    journal = tmp_path / "batches" / "batches" / f"{batch.id}.jsonl"
    written = [json.loads(one) for one in journal.read_text().splitlines()]
    assert 3 <= len(written) < 200
    for record in written:
        choice = record["response"]["body"]["choices"][0]
        assert choice["finish_reason"] == "length" and record["error"] is None
    with start(smollm2, tmp_path, "second") as running:
        done = until(client(running), batch.id, is_finished, timeout_s=400)
        assert len(answers(client(running), done.output_file_id)) == 200


@pytest.mark.long
def test_of_two_api_servers_one_runs_the_batches(smollm2, tmp_path) -> None:
    with start(smollm2, tmp_path, "two", "--api-server-count", "2") as running:
        batches = [submit(client(running), lines(f"n{number}", 10)) for number in range(3)]
        for batch in batches:
            # Each connection may come to the other process.
            done = until(client(running), batch.id, is_finished)
            assert done.request_counts.completed == 10
            assert len(answers(client(running), done.output_file_id)) == 10
        time.sleep(1)
        assert running.metrics()["vllm_batchllm:batch_api_lines_total"] == 30
    log = running.log.read_text().splitlines()
    assert len([row for row in log if "Batch API: /v1/files" in row]) == 2
    runners = {row.partition("pid=")[2].partition(")")[0] for row in log if "Batch batch_" in row}
    assert len(runners) == 1
