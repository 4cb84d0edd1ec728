# SPDX-License-Identifier: Apache-2.0
"""A job on servers that answer at once: every line once, in order of prefixes, whatever happens in between."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from job_files import (
    SETTINGS,
    WINDOW,
    EchoServer,
    answers,
    chat_line,
    damaged,
    many_lines,
    opened,
    records,
    run,
    run_whole,
    write_lines,
)

from vllm_batchllm.errors import UsageError
from vllm_batchllm.failpoints import Failpoints
from vllm_batchllm.input.line import JobLine, LineDefaults
from vllm_batchllm.jobs import journal as journal_module
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.journal import JournalLockedError
from vllm_batchllm.jobs.line_server import Ending
from vllm_batchllm.jobs.session import SessionSettings

NUM_LINES = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return many_lines(tmp_path / "in.jsonl", NUM_LINES)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_every_line_is_answered_once_with_its_own_answer(path: Path, journal: Path) -> None:
    found = answers(run_whole(path, journal))
    assert len(found) == NUM_LINES
    session = opened(path, journal)
    assert session.counts.new_bytes_left == 0
    session.close()
    for line in map(json.loads, path.read_text().splitlines()):
        said = found[line["custom_id"]]["choices"][0]["message"]["content"]
        assert said == line["body"]["messages"][0]["content"]


def test_groups_go_to_the_engine_one_by_one(path: Path, journal: Path) -> None:
    server = EchoServer()
    run_whole(path, journal, server)
    groups = [int(name[1:]) % (NUM_LINES // 8) for name in server.served]
    changes = sum(left != right for left, right in itertools.pairwise(groups))
    assert changes == NUM_LINES // 8 - 1


def test_no_more_than_the_window_is_with_the_engine(path: Path, journal: Path) -> None:
    server = EchoServer(delay_s=0.001)
    run_whole(path, journal, server)
    assert WINDOW.min_lines <= server.most_at_once <= WINDOW.max_lines


def test_few_new_tokens_let_more_lines_in(path: Path, journal: Path) -> None:
    session = opened(path, journal)
    flows = []
    for tokens in (1, 10**9):
        window = Window(2, 50, tokens)
        server = EchoServer(delay_s=0.001)
        only = session.plan.order[:50].tolist() if tokens == 1 else session.plan.order[50:].tolist()
        asyncio.run(session.run(server, window, asyncio.Event(), only=only))
        flows.append(server.most_at_once)
    session.close()
    assert flows == [2, 50]


def test_a_second_run_has_nothing_to_do(path: Path, journal: Path) -> None:
    first = run_whole(path, journal)
    server = EchoServer()
    assert run_whole(path, journal, server) == first
    assert server.served == []


def test_what_is_missing_is_done_and_only_that(path: Path, journal: Path) -> None:
    whole = run_whole(path, journal)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[::2]) + b'{"custom')
    server = EchoServer()
    assert answers(run_whole(path, journal, server)) == answers(whole)
    assert len(server.served) == NUM_LINES // 2


def test_answers_that_stand_twice_or_are_spoilt_are_mended(path: Path, journal: Path) -> None:
    whole = answers(run_whole(path, journal))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:50], b"\x00" * 40 + b"\n", *lines[40:]]))
    assert answers(run_whole(path, journal, EchoServer())) == whole


def test_exact_duplicates_are_computed_once(tmp_path: Path, journal: Path) -> None:
    lines = [chat_line(f"r{i}", f"text {i % 3}", temperature=0) for i in range(12)]
    server = EchoServer()
    found = answers(run_whole(write_lines(tmp_path / "in", lines), journal, server))
    assert len(server.served) == 3 and len(found) == 12
    assert all(found[f"r{i}"] == found[f"r{i % 3}"] for i in range(12))


def test_lines_that_are_no_request_get_the_reason_and_the_rest_its_answers(
    tmp_path: Path, journal: Path
) -> None:
    path = tmp_path / "in"
    good = json.dumps(chat_line("good", "text")).encode()
    again = json.dumps(chat_line("good", "other text")).encode()
    rest = [b"", b"no json", good, b"   ", again, b"\xff\xfe", b"[1]", b'{"custom_id": "x"}']
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(chat_line("bom", "t")).encode() + b"\r\n")
    with path.open("ab") as stream:
        stream.write(b"\r\n".join(rest))
    for _ in range(2):  # and a second run finds them all answered
        found = run_whole(path, journal)
        by_line = {one["error"]["line"]: one["error"]["message"] for one in found if one["error"]}
        assert sorted(by_line) == [3, 6, 7, 8, 9]
        assert "not valid JSON" in by_line[3] and "stands on an earlier line" in by_line[6]
        assert "not valid JSON" in by_line[7] and '"method" is missing' in by_line[9]
        assert "line 8: not a JSON object" in by_line[8]
        assert {one["custom_id"] for one in found if not one["error"]} == {"bom", "good"}


def test_a_line_that_is_too_long_is_not_kept(tmp_path: Path, journal: Path) -> None:
    path = write_lines(
        tmp_path / "in",
        [chat_line("a", "x" * 5000), chat_line("b", "y"), chat_line("c", "z" * 5000)],
    )
    session = opened(path, journal, SessionSettings({}, max_line_bytes=1000))
    run(session, EchoServer())
    session.close()
    found = records(journal)
    assert [one["custom_id"] for one in found if not one["error"]] == ["b"]
    errors = [one["error"] for one in found if one["error"]]
    assert [error["line"] for error in errors] == [1, 3]
    assert "longer than" in errors[0]["message"] and "--max-line-mb" in errors[0]["message"]


def test_an_empty_input_is_done(tmp_path: Path, journal: Path) -> None:
    assert run_whole(write_lines(tmp_path / "in", []), journal) == []


def test_plain_lines_are_answered_in_their_kind(tmp_path: Path, journal: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"id": 7, "prompt": "seven"},
        {"prompt": "without a name"},
        {"id": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3},
        {"id": 8, "prompt": "x", "messages": []},
        {"id": 7, "prompt": "again"},
        {"id": 9},
    ]
    for _ in range(2):
        run_whole(write_lines(tmp_path / "in", lines), journal)
        found = {str(one["id"]) + str(one.get("line", "")): one for one in records(journal)}
        assert found["7"]["text"] == "seven" and found["7"]["error"] is None
        assert found["2"]["text"] == "without a name"
        assert found["chat"]["text"] == "hi" and found["chat"]["finish_reason"] == "stop"
        bad = {one["line"]: one["error"]["message"] for one in found.values() if one["error"]}
        assert sorted(bad) == [4, 5, 6]
        assert "several of" in bad[4] and "earlier line" in bad[5] and "none of" in bad[6]


def test_plain_lines_get_the_jobs_limit(tmp_path: Path, journal: Path) -> None:
    path = write_lines(tmp_path / "in", [{"prompt": "a"}, {"prompt": "b", "max_tokens": 3}])
    seen = []

    class Server(EchoServer):
        async def serve(self, line: JobLine) -> Answer:
            seen.append(line.body["max_tokens"])
            return await super().serve(line)

    session = opened(path, journal, SessionSettings({}, LineDefaults(max_tokens=99)))
    run(session, Server())
    session.close()
    assert sorted(seen) == [3, 99]


def test_stopping_keeps_what_ends_in_time_and_gives_up_the_rest(path: Path, journal: Path) -> None:
    async def go(delay_s: float, grace_s: float) -> Ending:
        stop = asyncio.Event()
        server = EchoServer(delay_s)
        running = asyncio.create_task(session.run(server, WINDOW, stop, grace_s=grace_s))
        while not server.served:
            await asyncio.sleep(0.001)
        stop.set()
        return (await running)[0]

    session = opened(path, journal)
    assert asyncio.run(go(0.05, 5.0)) is Ending.STOPPED
    some = session.counts.done
    assert 0 < some < NUM_LINES
    assert asyncio.run(go(30.0, 0.05)) is Ending.STOPPED
    assert session.counts.done == some
    session.close()
    assert len(answers(run_whole(path, journal))) == NUM_LINES


def test_an_answer_to_being_cancelled_is_no_answer(path: Path, journal: Path) -> None:
    class Swallowing(EchoServer):
        async def serve(self, line: JobLine) -> Answer:
            try:
                return await super().serve(line)
            except asyncio.CancelledError:
                return Answer.of_error("BadRequestError", "Client disconnected")

    async def go() -> Ending:
        stop, server = asyncio.Event(), Swallowing(delay_s=60)
        running = asyncio.create_task(session.run(server, WINDOW, stop, grace_s=0.01))
        while not server.served:
            await asyncio.sleep(0.001)
        stop.set()
        return (await running)[0]

    session = opened(path, journal)
    assert asyncio.run(go()) is Ending.STOPPED
    session.close()
    assert records(journal) == []


def test_an_engine_that_dies_costs_no_answer(path: Path, journal: Path) -> None:
    session = opened(path, journal)
    ending, in_flight = run(session, EchoServer(dies_with=["r50"]))
    numbers = [int(session.source.numbers[index]) for index in in_flight]
    assert ending is Ending.ENGINE_GONE and 51 in numbers and len(numbers) <= WINDOW.max_lines
    assert 0 < session.counts.new_bytes_left < session.plan.num_new_bytes
    assert run(session, EchoServer()) == (Ending.DONE, [])
    assert session.counts.new_bytes_left == 0
    session.close()
    assert len(answers(records(journal))) == NUM_LINES


def test_a_server_that_is_given_up_ends_the_run(path: Path, journal: Path) -> None:
    async def go() -> tuple[Ending, list[int]]:
        server = EchoServer(delay_s=60)
        running = asyncio.create_task(session.run(server, WINDOW, asyncio.Event()))
        while len(server.served) < WINDOW.min_lines:
            await asyncio.sleep(0.001)
        server.gone.set()
        return await running

    session = opened(path, journal)
    ending, in_flight = asyncio.run(go())
    session.close()
    assert ending is Ending.ENGINE_GONE and len(in_flight) >= WINDOW.min_lines


def test_a_disk_that_is_full_ends_the_run_and_loses_nothing(
    path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(path, journal)
    monkeypatch.setattr(journal_module, "hit", Failpoints("journal.write=full:2").hit)
    with pytest.raises(OSError) as caught:
        run(session, EchoServer(delay_s=0.002))
    session.close()
    assert caught.value.errno == errno.ENOSPC
    some = answers(records(journal))
    assert 0 < len(some) < NUM_LINES
    assert some.items() <= answers(run_whole(path, journal)).items()


def test_errors_may_be_tried_again(path: Path, journal: Path) -> None:
    class Failing(EchoServer):
        async def serve(self, line: JobLine) -> Answer:
            if line.custom_id in ("r1", "r2"):
                return Answer.of_error("InternalServerError", "busy", 500)
            return await super().serve(line)

    run_whole(path, journal, Failing())
    session = opened(path, journal)
    assert (session.counts.failed, session.books.errors) == (2, {"InternalServerError": 2})
    session.close()
    server = EchoServer()
    session = opened(path, journal, SessionSettings({"model": "m"}, retry_errors=True))
    run(session, server)
    session.close()
    assert sorted(server.served) == ["r1", "r2"]
    assert all(one["error"] is None for one in records(journal))


def test_another_input_is_refused(path: Path, journal: Path) -> None:
    run_whole(path, journal)
    with path.open("a") as stream:
        stream.write("\n")
    with pytest.raises(UsageError, match=r"in\.jsonl is not the input .* --restart"):
        opened(path, journal)


def test_another_model_is_refused_by_name(path: Path, journal: Path) -> None:
    run_whole(path, journal)
    with pytest.raises(UsageError, match=r"begun with model = 'm', now it is 'other'"):
        opened(path, journal, SessionSettings({"model": "other"}))


def test_a_file_that_no_job_has_written_is_refused(path: Path, journal: Path) -> None:
    journal.write_text('{"precious": 1}\n')
    with pytest.raises(UsageError, match="no job says that it has written it"):
        opened(path, journal)
    assert journal.read_text() == '{"precious": 1}\n'


def test_a_journal_of_another_job_is_refused(path: Path, journal: Path) -> None:
    run_whole(path, journal)
    damaged(journal, lambda whole: whole.replace(b'"r5"', b'"q5"'))
    with pytest.raises(UsageError, match=r"an answer to 'q5', which is not in"):
        opened(path, journal)


def test_one_job_at_a_time(path: Path, journal: Path) -> None:
    session = opened(path, journal)
    with pytest.raises(JournalLockedError, match="another process"):
        opened(path, journal, SETTINGS)
    session.close()
