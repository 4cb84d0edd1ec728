# SPDX-License-Identifier: Apache-2.0
"""The Batch API on a real PostgreSQL: races, leases, and a database that is gone for a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import test_batch_api_state as sqlite_states
from batch_api_world import World, jsonl, line, lines_of, submit, until
from postgres_server import Postgres, postgres, why_not
from sqlalchemy import text

from vllm_batchllm.batch_api.database import Database
from vllm_batchllm.batch_api.lease import Lease
from vllm_batchllm.batch_api.migrations import migrate
from vllm_batchllm.batch_api.records import add, find, move
from vllm_batchllm.batch_api.tables import BATCHES

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture
def url(server: Postgres) -> str:
    """Of an empty database."""
    database = Database(server.url)
    database.do(lambda c: c.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public")))
    database.close()
    return server.url


def test_a_batch_is_run_and_read(url, tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path, database_url=url)
        client = world.client()
        async with world.running():
            batches = [
                await submit(client, jsonl(line("a"), line("b", fail=1), "{bad", line("c")))
                for _ in range(3)
            ]
            for batch in batches:
                done = await until(client, batch.id)
                assert done.status == "completed" and done.request_counts.completed == 2
                assert set(await lines_of(client, done.output_file_id)) == {"a", "c"}
        assert [batch.id async for batch in client.batches.list(limit=1)] == [
            batch.id for batch in reversed(batches)
        ]
        assert (await client.files.delete(done.input_file_id)).deleted

    asyncio.run(go())


def test_many_processes_make_the_tables_once(url) -> None:
    databases = [Database(url) for _ in range(6)]
    threads = [threading.Thread(target=one.do, args=(migrate,)) for one in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert databases[0].do(migrate) == 1


def test_of_a_cancel_and_an_end_that_meet_one_is_made(url) -> None:
    made = Database(url)
    made.do(migrate)
    for _ in range(40):
        row = sqlite_states.batch("in_progress")
        made.do(lambda c, row=row: add(c, BATCHES, row))
        gate = threading.Barrier(2)
        done: dict[str, bool] = {}

        def ask(state: str, row=row, gate=gate, done=done) -> None:
            gate.wait()
            done[state] = made.do(lambda c: move(c, row["id"], state, 1))

        threads = [
            threading.Thread(target=ask, args=(state,)) for state in ("cancelling", "finalizing")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [state for state in done if done[state]]
        assert made.do(lambda c, row=row: find(c, BATCHES, row["id"]))["status"] == winner


def test_of_many_processes_one_holds_the_lease(url) -> None:
    made = Database(url)
    made.do(migrate)
    leases = [Lease(made, term_s=1.0) for _ in range(8)]

    async def all_ask() -> list[bool]:
        return await asyncio.gather(*(lease.take() for lease in leases))

    first = asyncio.run(all_ask())
    assert sum(first) == 1 and asyncio.run(all_ask()) == first
    others = [lease for lease, has in zip(leases, first, strict=True) if not has]

    async def later() -> list[bool]:
        await asyncio.sleep(1.2)
        return await asyncio.gather(*(lease.take() for lease in others))

    assert sum(asyncio.run(later())) == 1, "the term is over by the clock of the database"


def test_a_database_that_stops_and_comes_back_is_survived(server, url, tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path, database_url=url, term_s=1.0)
        client = world.client()
        world.server.hold()
        async with world.running(), world.http() as http:
            batch = await submit(client, jsonl(line("a"), line("b")))
            while len(world.server.waiting) < 2:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(server.stop)
            answer = await http.get("/v1/batches")
            assert answer.status_code == 503 and "away" in answer.json()["error"]["message"]
            while world.server.waiting:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(server.start)
            world.server.let_go()
            done = await until(client, batch.id, timeout_s=30)
        assert done.status == "completed" and dict(world.server.served) == {"a": 1, "b": 1}

    asyncio.run(go())
