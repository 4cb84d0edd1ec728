# SPDX-License-Identifier: Apache-2.0
"""A job on replicas in this process: real sessions, journals, hosts and line workers around servers that answer at once."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from job_files import (
    EchoServer,
    answers,
    chat_line,
    many_lines,
    opened,
    records,
    run_whole,
    write_lines,
)

from vllm_batchllm.jobs.line_server import Ending
from vllm_batchllm.jobs.line_worker import InputFile, LineAt, LineItself, LineWorker
from vllm_batchllm.jobs.replicated import ReplicatedRunner
from vllm_batchllm.jobs.runner import EngineKeepsDyingError, RunLimits
from vllm_batchllm.jobs.session import JobSession
from vllm_batchllm.replicas import driver as driver_module
from vllm_batchllm.replicas.host import ReplicaHost, WorkerDiedError
from vllm_batchllm.replicas.replica import Capacity, Given, ReplicaGoneError, Taken

NUM_LINES = 120


class LocalReplica:
    """A host in this process. make_server: of its n-th life; raises where it cannot start."""

    def __init__(self, name: str, source: InputFile, make_server: Callable[[int], Any]) -> None:
        self.name, self._source, self._make = name, source, make_server
        self.servers: list[Any] = []
        self.given: list[Any] = []
        self._host: ReplicaHost | None = None

    async def start(self) -> Capacity:
        server = self._make(len(self.servers))
        self.servers.append(server)
        make_worker = partial(LineWorker, Namespace(server=server), self._source)
        self._host = ReplicaHost(self.name, make_worker)
        return await self._ask(self._host.start)

    async def give(self, given: Sequence[Given]) -> None:
        self.given += [what for _, what in given]
        assert self._host is not None
        await self._ask(self._host.give, given)

    async def take(self) -> Taken:
        assert self._host is not None
        return await self._ask(self._host.take, 0.05)

    async def release(self) -> None:
        await self.end()

    async def end(self) -> None:
        if self.servers:
            self.servers[-1].gone.set()

    async def _ask(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.to_thread(function, *args)
        except (WorkerDiedError, RuntimeError) as error:
            raise ReplicaGoneError(str(error)) from None


class DyingServer(EchoServer):
    """Its engine is gone for good once it has died."""

    async def serve(self, line: Any) -> Any:
        if self.gone.is_set():
            await asyncio.sleep(3600)
        if line.custom_id in self._dies_with:
            self.gone.set()
        return await super().serve(line)


@dataclass
class World:
    session: JobSession
    journal: Path
    source: InputFile

    def replica(self, name: str, make_server: Callable[[int], Any]) -> LocalReplica:
        return LocalReplica(name, self.source, make_server)

    def run(self, replicas: Sequence[Any], **limits: float) -> Ending:
        return asyncio.run(self._run(replicas, limits))

    async def _run(self, replicas: Sequence[Any], limits: Any) -> Ending:
        runner = ReplicatedRunner(self.session, replicas, RunLimits(**limits))
        return await runner.run(asyncio.Event())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    @asynccontextmanager
    async def engine(args: Namespace) -> AsyncIterator[Any]:
        yield SimpleNamespace(server=args.server, max_num_seqs=8)

    monkeypatch.setattr("vllm_batchllm.jobs.engine.started_engine", engine)
    monkeypatch.setattr(driver_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    path = many_lines(tmp_path / "in.jsonl", NUM_LINES)
    with path.open("a") as stream:
        stream.write('{"no": "request"}\n')
    return made(path, tmp_path / "out.jsonl")


def made(path: Path, journal: Path) -> World:
    session = opened(path, journal)
    return World(session, journal, InputFile.of(session.source))


def test_answers_are_those_of_one_engine(world: World, tmp_path: Path) -> None:
    replicas = [world.replica(name, lambda life: EchoServer()) for name in "ab"]
    assert world.run(replicas) is Ending.DONE
    found = records(world.journal)
    alone = run_whole(world.session.source.path, tmp_path / "alone.jsonl")
    assert len(found) == NUM_LINES + 1
    named = [one for one in found if one["custom_id"] is not None]
    assert answers(named) == answers(one for one in alone if one["custom_id"] is not None)
    assert all(replica.servers[0].served for replica in replicas)
    assert all(isinstance(what, LineAt) for replica in replicas for what in replica.given)
    counts = world.session.counts
    assert (counts.completed, counts.failed, counts.new_bytes_left) == (NUM_LINES, 1, 0)
    assert counts.output_tokens == NUM_LINES


def test_lines_travel_by_value_where_the_file_is_not_seen(world: World, tmp_path: Path) -> None:
    elsewhere = InputFile("/nowhere/in.jsonl", world.source.fingerprint, *_rest(world.source))
    likely = tmp_path / "likely.jsonl"  # of the same size, and with the same beginning and end
    likely.write_bytes(
        Path(world.source.path).read_bytes().replace(b"document 3 ", b"document 4 ", 1)
    )
    changed = InputFile(str(likely), world.source.fingerprint, *_rest(world.source))
    replicas = [
        LocalReplica(name, source, lambda life: EchoServer())
        for name, source in (("a", elsewhere), ("b", changed))
    ]
    assert world.run(replicas) is Ending.DONE
    assert world.session.counts.completed == NUM_LINES
    assert all(isinstance(what, LineItself) for replica in replicas for what in replica.given)


def _rest(source: InputFile) -> tuple[Any, int]:
    return source.defaults, source.max_line_bytes


def test_a_line_that_kills_engines_is_answered_with_an_error_and_no_other(world: World) -> None:
    def server(life: int) -> EchoServer:
        return DyingServer(0.002, dies_with=["r77"])

    replicas = [world.replica(name, server) for name in "ab"]
    assert world.run(replicas, max_restarts=40) is Ending.DONE
    found = {one["custom_id"]: one for one in records(world.journal)}
    assert found["r77"]["error"]["code"] == "engine_died"
    assert world.session.counts.completed == NUM_LINES - 1
    assert len(records(world.journal)) == NUM_LINES + 1


def test_a_job_that_was_cut_short_goes_on_with_another_number(world: World, tmp_path: Path) -> None:
    def broken(life: int) -> EchoServer:
        if life:
            raise ReplicaGoneError("no room")
        return DyingServer(0.001, dies_with=["r40"])

    with pytest.raises(EngineKeepsDyingError, match="no replica is left"):
        world.run([world.replica("a", broken)])
    world.session.close()
    before = len(records(world.journal))
    assert 0 < before < NUM_LINES
    again = made(world.session.source.path, world.journal)
    assert again.session.counts.resumed == before
    replicas = [again.replica(name, lambda life: EchoServer()) for name in "abc"]
    assert again.run(replicas) is Ending.DONE
    assert len({one["custom_id"] for one in records(world.journal)}) == NUM_LINES + 1


def test_exact_duplicates_are_computed_once(tmp_path: Path, world: World) -> None:
    lines = [chat_line(f"d{number}", f"text {number % 3}", temperature=0) for number in range(30)]
    other = made(write_lines(tmp_path / "same.jsonl", lines), tmp_path / "same.out.jsonl")
    replicas = [other.replica(name, lambda life: EchoServer()) for name in "ab"]
    assert other.run(replicas) is Ending.DONE
    assert len(answers(records(other.journal))) == 30
    assert sum(len(replica.servers[0].served) for replica in replicas if replica.servers) == 3


def test_a_full_disk_ends_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(packed: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.session._journal, "append", full)
    with pytest.raises(OSError, match="No space left"):
        world.run([world.replica("a", lambda life: EchoServer())])
