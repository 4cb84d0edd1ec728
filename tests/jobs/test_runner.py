# SPDX-License-Identifier: Apache-2.0
"""Engines that die, hang, or do not start: the job ends by itself, and only the guilty line has no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_files import EchoServer, answers, many_lines, opened, records

from vllm_batchllm.jobs import runner as runner_module
from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.line_server import Ending
from vllm_batchllm.jobs.runner import EngineKeepsDyingError, JobRunner, RunLimits
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.replicas.suspects import Suspects

NUM_LINES = 120


@dataclass
class FakeEngine:
    server: EchoServer
    window: Window


class Engines:
    """Makes one engine after the other. make: the server of the n-th, from 0; raises where it cannot start."""

    def __init__(self, make: Callable[[int], EchoServer], width: int = 40) -> None:
        self.made: list[EchoServer] = []
        self.num_tries = 0
        self._make, self._width = make, width

    @asynccontextmanager
    async def start(self) -> AsyncIterator[FakeEngine]:
        self.num_tries += 1
        server = self._make(self.num_tries - 1)
        self.made.append(server)
        yield FakeEngine(server, Window(self._width, self._width, 10**9))


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSession:
    monkeypatch.setattr(runner_module, "_FIRST_PAUSE_S", 0.0)
    return opened(many_lines(tmp_path / "in.jsonl", NUM_LINES), tmp_path / "out.jsonl")


def run(session: JobSession, engines: Engines, **limits: float) -> Ending:
    async def go() -> Ending:
        # An engine that lives shows it by what it was asked for.
        def life() -> object:
            return sum(len(server.served) for server in engines.made)

        known = RunLimits(**{"stall_s": 60.0, **limits})  # type: ignore[arg-type]
        runner = JobRunner(session, engines.start, life, known)
        return await runner.run(asyncio.Event())

    try:
        return asyncio.run(go())
    finally:
        session.close()


def test_a_poison_line_is_found_and_the_rest_is_answered(
    session: JobSession, tmp_path: Path
) -> None:
    engines = Engines(lambda _: EchoServer(dies_with=["r77"]))
    assert run(session, engines) is Ending.DONE
    found = records(tmp_path / "out.jsonl")
    assert len(answers(found)) == NUM_LINES
    bad = [one for one in found if one["error"]]
    assert [one["custom_id"] for one in bad] == ["r77"]
    assert bad[0]["error"] == {
        "code": "engine_died",
        "message": "line 78 has killed the engine twice; it was not tried again",
    }
    assert engines.num_tries <= 5


def test_two_poison_lines_are_both_found(session: JobSession, tmp_path: Path) -> None:
    assert run(session, Engines(lambda _: EchoServer(dies_with=["r3", "r90"]))) is Ending.DONE
    bad = [one["custom_id"] for one in records(tmp_path / "out.jsonl") if one["error"]]
    assert sorted(bad) == ["r3", "r90"]


def test_an_engine_that_dies_once_costs_nobody_an_answer(
    session: JobSession, tmp_path: Path
) -> None:
    deaths = [["r10"], ["r60"]]
    engines = Engines(lambda n: EchoServer(dies_with=deaths[n] if n < 2 else []))
    assert run(session, engines) is Ending.DONE
    assert all(one["error"] is None for one in records(tmp_path / "out.jsonl"))


def test_an_engine_that_hangs_is_replaced(session: JobSession, tmp_path: Path) -> None:
    engines = Engines(lambda n: EchoServer(delay_s=3600 if n == 0 else 0))
    assert run(session, engines, stall_s=0.2) is Ending.DONE
    assert engines.num_tries == 2
    assert len(answers(records(tmp_path / "out.jsonl"))) == NUM_LINES


def test_an_engine_that_never_starts_ends_the_job(session: JobSession) -> None:
    def fail(_: int) -> EchoServer:
        raise ValueError("no such model")

    engines = Engines(fail)
    with pytest.raises(EngineKeepsDyingError, match="no engine could be started: no such model"):
        run(session, engines)
    assert engines.num_tries == 1


def test_an_engine_that_does_not_come_back_ends_the_job(session: JobSession) -> None:
    def fail_later(number: int) -> EchoServer:
        if number:
            raise ValueError("no memory")
        return EchoServer(dies_with=["r0"])

    with pytest.raises(EngineKeepsDyingError):
        run(session, Engines(fail_later), max_restarts=6)


def test_restarts_are_bounded(session: JobSession) -> None:
    engines = Engines(lambda _: EchoServer(dies_with=[f"r{n}" for n in range(NUM_LINES)]))
    with pytest.raises(EngineKeepsDyingError, match=r"4 times \(--max-restarts\)"):
        run(session, engines, max_restarts=4)
    assert engines.num_tries == 5


@given(st.integers(1, 3000), st.data())
def test_the_guilty_line_is_found_in_few_deaths(num_lines: int, data: st.DataObject) -> None:
    guilty = data.draw(st.integers(0, num_lines - 1))
    suspects, left, deaths = Suspects(), list(range(num_lines)), 0
    found = suspects.died(left)
    deaths += 1
    while found is None:
        group = suspects.next_group()
        assert group, "nobody is suspected any more, and nobody was found"
        if guilty in group:
            found = suspects.died(group)
            deaths += 1
        else:
            suspects.cleared(group)
    assert found == guilty
    assert deaths <= 5 and not suspects.next_group()
