# SPDX-License-Identifier: Apache-2.0
"""The loop that runs batches: one process at a time, and whatever happens to a batch or the disk."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os

import pytest
from batch_api_world import World, jsonl, line, lines_of, submit, until
from prometheus_client import generate_latest

from vllm_batchllm.batch_api import running, work
from vllm_batchllm.input.line import CHAT, JobLine
from vllm_batchllm.jobs.journal import Journal


def test_of_two_processes_one_runs_and_the_other_takes_over(tmp_path) -> None:
    async def go() -> None:
        first, second = World(tmp_path), World(tmp_path)
        client = second.client()
        async with second.running():
            async with first.running():
                batches = [await submit(client, jsonl(line("a"), line("b"))) for _ in range(6)]
                for batch in batches:
                    assert (await until(client, batch.id)).status == "completed"
                by_holding = sorted(
                    (w.lease.is_held, w.server.served.total()) for w in (first, second)
                )
                assert by_holding == [(False, 0), (True, 12)]
            batch = await submit(client, jsonl(line("late")))
            assert (await until(client, batch.id)).status == "completed"
        assert second.server.served["late"] == 1

    asyncio.run(go())


def test_a_batch_that_fails_again_and_again_is_given_up_and_the_others_are_not(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("vllm_batchllm.batch_api.runner.MAX_PAUSE_S", 0.02)

    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        write = running.write_results

        def broken(contents, batch_id, *ids):
            if batch_id == bad.id:
                raise KeyError("a mistake of ours")
            return write(contents, batch_id, *ids)

        bad = await submit(client, jsonl(line("a")))
        monkeypatch.setattr(running, "problems", lambda source, *_: 1 // (len(source) - 1))
        monkeypatch.setattr(running, "write_results", broken)
        async with world.running():
            done = await until(client, bad.id)
            monkeypatch.undo()
            good = await submit(client, jsonl(line("c")))
            assert (await until(client, good.id)).status == "completed"
        assert done.status == "failed" and done.errors.data[0].code == "internal_error"

    asyncio.run(go())


def test_a_full_disk_is_waited_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vllm_batchllm.batch_api.runner.MAX_PAUSE_S", 0.02)

    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        append, failed = Journal.append, []

        def full(self, lines):
            if len(failed) < 8:
                failed.append(lines)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return append(self, lines)

        monkeypatch.setattr(Journal, "append", full)
        async with world.running():
            batch = await submit(client, jsonl(line("a"), line("b")))
            done = await until(client, batch.id)
        assert done.status == "completed" and len(failed) == 8
        assert set(await lines_of(client, done.output_file_id)) == {"a", "b"}

    asyncio.run(go())


def test_a_model_that_is_gone_after_a_restart_ends_the_batch_with_what_it_has(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        world.server.hold()
        async with world.running():
            batch = await submit(client, jsonl(line("a", quick=1), line("b")))
            while not world.server.served:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
        again = World(tmp_path)
        again.models = frozenset({"another"})
        async with again.running():
            done = await until(again.client(), batch.id)
        assert done.status == "failed" and "another" in done.errors.data[0].message
        assert set(await lines_of(client, done.output_file_id)) == {"a"}

    asyncio.run(go())


def test_an_engine_that_is_gone_is_no_answer(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        ending = [False]
        later = work.LaterServer(world.server, None, lambda: ending[0])
        world.with_tools(work=dataclasses.replace(world.tools.work, server=later))
        world.server.hold()
        async with world.running():
            batch = await submit(client, jsonl(line("a"), line("b")))
            while len(world.server.waiting) < 2:
                await asyncio.sleep(0.02)
            ending[0] = True
            world.server.let_go()
            await asyncio.sleep(0.2)
            assert (await client.batches.retrieve(batch.id)).status == "in_progress"
        async with World(tmp_path).running():
            assert (await until(client, batch.id)).request_counts.completed == 2

    asyncio.run(go())


@pytest.mark.parametrize(
    "given, priority, sent",
    [
        ({}, 1000, 1000),
        ({"priority": 5}, 1000, 1000),
        ({"priority": 2000}, 1000, 2000),
        ({"priority": "x"}, 1000, "x"),
        ({"priority": True}, 7, True),
        ({}, None, None),
    ],
)
def test_lines_come_after_interactive_requests(given, priority, sent) -> None:
    asked = JobLine(1, "a", CHAT, given)
    assert work.later(asked, priority).body.get("priority") == sent
    assert asked.body == given, "the line itself, which is hashed, stays as it is"


def test_figures_of_what_runs_are_there_while_it_runs(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        world.server.hold()
        shared = "the same beginning " * 100
        asked = [line(f"{n}", content=f"{shared}{n}") for n in range(4)]
        async with world.running():
            batch = await submit(client, jsonl(line("q", quick=1), *asked))
            while "_saved_share{" not in (shown := generate_latest(world.registry).decode()):
                await asyncio.sleep(0.02)
            (share,) = [row for row in shown.splitlines() if "_saved_share{" in row]
            assert batch.id in share and 0.6 < float(share.split()[-1]) < 0.75
            await asyncio.sleep(0.1)
            assert (await client.batches.retrieve(batch.id)).request_counts.completed == 1
            world.server.let_go()
            await until(client, batch.id)
            await asyncio.sleep(0.1)
            shown = generate_latest(world.registry).decode()
            assert batch.id not in shown
            assert 'vllm_batchllm:batch_api_lines_total{outcome="completed"} 5.0' in shown

    asyncio.run(go())
