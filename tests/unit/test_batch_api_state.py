# SPDX-License-Identifier: Apache-2.0
"""Changes of state that meet, the lease, the version of the tables, and a database that is away."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from batch_api_world import World, jsonl, line, submit, until
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, text, update

from vllm_batchllm.batch_api import schema, states
from vllm_batchllm.batch_api.database import Database, DatabaseAway
from vllm_batchllm.batch_api.lease import Lease
from vllm_batchllm.batch_api.migrations import migrate
from vllm_batchllm.batch_api.options import DATABASE_NAME
from vllm_batchllm.batch_api.records import add, find, move
from vllm_batchllm.batch_api.tables import BATCHES, LEASES
from vllm_batchllm.errors import UsageError


def database(folder: Path) -> Database:
    made = Database(f"sqlite:///{folder / DATABASE_NAME}", busy_s=5)
    made.do(migrate)
    return made


def batch(status: str = "validating") -> dict[str, object]:
    return {
        "id": schema.new_batch_id(),
        "owner": "",
        "status": status,
        "endpoint": "/v1/completions",
        "input_file_id": schema.new_file_id(),
        "completion_window": "24h",
        "created_at": 1,
        "expires_at": 2,
        "answers_id": schema.new_file_id(),
        "failures_id": schema.new_file_id(),
    }


def test_every_state_is_reached_and_every_end_is_one() -> None:
    assert set().union(*states.FOLLOWS.values()) == set(states.FOLLOWS) - {"validating"}
    assert {"completed", "failed", "expired", "cancelled"} == states.FINISHED
    named = {"validating", "in_progress", "finalizing", "cancelling"}
    assert named == states.UNFINISHED


@given(wanted=st.lists(st.sampled_from(sorted(states.FOLLOWS)), max_size=12))
def test_whatever_is_asked_in_whatever_order_a_batch_goes_one_way(wanted) -> None:
    made = Database("sqlite://")
    row = batch()

    def ask(connection: Connection) -> list[str]:
        migrate(connection)
        add(connection, BATCHES, row)
        gone = ["validating"]
        for number, state in enumerate(wanted):
            if state != "validating" and move(connection, row["id"], state, number):
                gone.append(state)
        return gone

    gone = made.do(ask)
    for earlier, later in itertools.pairwise(gone):
        assert later in states.FOLLOWS[earlier]
    assert len([state for state in gone if state in states.FINISHED]) <= 1
    found = made.do(lambda connection: find(connection, BATCHES, row["id"]))
    assert found["status"] == gone[-1]
    told = [
        state
        for state in states.FOLLOWS
        if state != "validating" and found[f"{state}_at"] is not None
    ]
    assert sorted(told) == sorted(gone[1:])


def test_of_a_cancel_and_an_end_that_meet_one_is_made(tmp_path) -> None:
    made = database(tmp_path)
    won = {"cancelling": 0, "finalizing": 0}
    for _ in range(40):
        row = batch("in_progress")
        made.do(lambda connection, row=row: add(connection, BATCHES, row))
        gate = threading.Barrier(2)
        done: dict[str, bool] = {}

        def ask(state: str, row=row, gate=gate, done=done) -> None:
            gate.wait()
            done[state] = made.do(lambda connection: move(connection, row["id"], state, 1))

        threads = [threading.Thread(target=ask, args=(state,)) for state in won]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [state for state in won if done[state]]
        won[winner] += 1
        found = made.do(lambda connection, row=row: find(connection, BATCHES, row["id"]))
        assert found["status"] == winner
    assert sum(won.values()) == 40


def test_of_many_processes_one_holds_the_lease(tmp_path) -> None:
    made = database(tmp_path)
    leases = [Lease(made) for _ in range(8)]

    async def all_ask() -> list[bool]:
        return await asyncio.gather(*(lease.take() for lease in leases))

    first = asyncio.run(all_ask())
    assert sum(first) == 1 and [lease.is_held for lease in leases] == first
    assert asyncio.run(all_ask()) == first, "who holds it renews it"
    holder = leases[first.index(True)]
    asyncio.run(holder.give_back())
    assert not holder.is_held
    assert sum(asyncio.run(all_ask())) == 1


def test_a_lease_that_is_not_renewed_is_taken_and_its_holder_changes_nothing_more(tmp_path) -> None:
    made = database(tmp_path)
    now = [0.0]
    old, new = Lease(made, term_s=10, clock=lambda: now[0]), Lease(made, term_s=10)
    assert asyncio.run(old.take()) and not asyncio.run(new.take())
    row = batch()
    made.do(lambda connection: add(connection, BATCHES, row))
    now[0] = 10.0
    assert not old.is_held, "it knows without asking"
    made.do(lambda connection: connection.execute(update(LEASES).values(expires_at=1.0)))

    def change(holder: str) -> bool:
        return made.do(
            lambda connection: move(connection, row["id"], "in_progress", 1, holder=holder)
        )

    assert not change(old.holder), "it is over, though nobody has taken it"
    assert asyncio.run(new.take()) and not asyncio.run(old.take())
    assert not change(old.holder) and change(new.holder)


def test_tables_are_made_once_and_led_forward(tmp_path) -> None:
    made = database(tmp_path)
    assert made.do(migrate) == 1
    steps = (
        lambda connection: connection.execute(text("ALTER TABLE batchllm_files ADD colour TEXT")),
        lambda connection: connection.execute(text("UPDATE batchllm_files SET colour = 'red'")),
    )
    for _ in range(2):  # the second time there is nothing to do
        assert made.do(lambda connection: migrate(connection, steps)) == 3
    made.do(lambda connection: connection.execute(text("SELECT colour FROM batchllm_files")))
    with pytest.raises(UsageError, match=r"version 3.*up to 1.*--batch-db"):
        made.do(migrate)


REFUSED = {
    "words": ("not a url", "is no database"),
    "kind": ("magic://here/x", "is no database"),
    "driver": ("oracle+oracledb://here/x", "needs the Python package"),
    "password": ("magic://me:secret@here/x", r"me:\*\*\*@here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_database_that_cannot_be_used_is_refused_by_name(name) -> None:
    url, words = REFUSED[name]
    with pytest.raises(UsageError, match=words) as raised:
        Database(url)
    assert "--batch-db" in str(raised.value) and "secret" not in str(raised.value)


def test_a_locked_database_is_waited_for_told_and_survived(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        async with world.running(), world.http() as http:
            world.server.hold()
            started = await submit(client, jsonl(line("a"), line("b")))
            while len(world.server.waiting) < 2:
                await asyncio.sleep(0.02)
            lock = sqlite3.connect(tmp_path / DATABASE_NAME, isolation_level=None)
            lock.execute("BEGIN EXCLUSIVE")
            answer = await http.get("/v1/batches")
            assert answer.status_code == 503 and "locked" in answer.json()["error"]["message"]
            world.server.let_go()
            await asyncio.sleep(0.5)
            assert dict(world.server.served) == {"a": 1, "b": 1}, "what runs goes on"
            lock.execute("COMMIT")
            lock.close()
            assert (await until(client, started.id)).request_counts.completed == 2
        assert dict(world.server.served) == {"a": 1, "b": 1}

    asyncio.run(go())


def test_a_runner_without_a_database_stops_feeding_before_its_lease_is_over(tmp_path) -> None:
    """Nobody else may have begun by then; when the database is back, it goes on."""

    async def go() -> None:
        world = World(tmp_path, term_s=0.5)
        client = world.client()
        world.server.hold()
        async with world.running():
            started = await submit(client, jsonl(line("a"), line("b")))
            while len(world.server.waiting) < 2:
                await asyncio.sleep(0.02)
            do, world.store.database.do = world.store.database.do, away
            deadline = time.monotonic() + 5
            while world.server.waiting and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert not world.server.waiting
            world.store.database.do = do
            world.server.let_go()
            assert (await until(client, started.id)).status == "completed"
        assert dict(world.server.served) == {"a": 1, "b": 1}

    asyncio.run(go())


def away(work: object) -> None:
    raise DatabaseAway("the database of batches is away: gone")
