# SPDX-License-Identifier: Apache-2.0
"""A batch from upload to download, by the `openai` client; what fails as a whole, and what by the line."""

from __future__ import annotations

import asyncio

from batch_api_world import World, jsonl, line, lines_of, submit, until
from prometheus_client import generate_latest


def test_a_batch_is_run_and_read(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        async with world.running():
            content = jsonl(line("a"), line("b", fail=1), "{broken", line("c"), line("d"))
            batch = await submit(client, content, metadata={"who": "me"})
            assert batch.status == "validating" and batch.object == "batch"
            assert batch.id.startswith("batch_") and batch.input_file_id.startswith("file-")
            done = await until(client, batch.id)
        assert done.status == "completed" and done.metadata == {"who": "me"} and done.errors is None
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (5, 3, 2)
        moments = (done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at)
        assert list(moments) == sorted(moments) and done.expires_at == done.created_at + 86400
        answers = await lines_of(client, done.output_file_id)
        assert set(answers) == {"a", "c", "d"}
        body = answers["a"]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == "say a"
        failures = await lines_of(client, done.error_file_id)
        assert set(failures) == {"b", None}
        assert failures["b"]["response"]["status_code"] == 400
        assert "line 3" in failures[None]["error"]["message"]
        info = await client.files.retrieve(done.output_file_id)
        assert info.purpose == "batch_output" and info.filename == f"{done.id}_output.jsonl"
        assert info.bytes == len((await client.files.content(done.output_file_id)).content)
        assert not list((tmp_path / "batches").iterdir()), "the journal is of no use any more"
        shown = generate_latest(world.registry).decode()
        assert 'batch_api_unfinished_batches{status="in_progress"}' in shown

    asyncio.run(go())


WRONG_AS_A_WHOLE = {
    "empty": (b"", "empty_file", None),
    "blank": (b"\n \n", "empty_file", None),
    "endpoint": (jsonl(line("a"), line("b", url="/v1/embeddings")), "mismatched_url", 2),
    "model": (jsonl(line("a"), line("b", model="gpt-4o")), "model_not_found", 2),
    "twice": (jsonl(line("a"), "{bad", line("a")), "duplicate_custom_id", 3),
    "many": (jsonl(*(line(str(n)) for n in range(9))), "too_many_lines", None),
    "plain": (jsonl({"prompt": "hello"}), "invalid_line", 1),
}


def test_what_is_wrong_as_a_whole_fails_the_batch_and_says_where(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path, max_requests=8)
        client = world.client()
        async with world.running():
            for name, (content, code, number) in WRONG_AS_A_WHOLE.items():
                done = await until(client, (await submit(client, content)).id)
                assert done.status == "failed" and done.failed_at, name
                error = done.errors.data[0]
                assert (error.code, error.line) == (code, number), name
                assert error.message and str(tmp_path) not in error.message
                assert done.output_file_id is None and done.error_file_id is None
        assert not world.server.served

    asyncio.run(go())


def test_two_batches_run_at_once_and_a_third_waits(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        world.server.hold()
        async with world.running():
            batches = [await submit(client, jsonl(line(f"{n}"))) for n in range(3)]
            for batch in batches[:2]:
                await until(client, batch.id, "in_progress")
            while world.server.waiting != {"0", "1"}:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            assert (await client.batches.retrieve(batches[2].id)).status == "validating"
            world.server.let_go()
            for batch in batches:
                assert (await until(client, batch.id)).status == "completed"
        assert dict(world.server.served) == {"0": 1, "1": 1, "2": 1}

    asyncio.run(go())


def test_cancelled_keeps_what_is_answered(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        world.server.hold()
        async with world.running():
            batch = await submit(client, jsonl(line("a", quick=1), line("b"), line("c")))
            while not world.server.served:
                await asyncio.sleep(0.02)
            assert (await client.batches.cancel(batch.id)).status == "cancelling"
            done = await until(client, batch.id)
        assert done.status == "cancelled" and done.cancelling_at and done.cancelled_at
        assert set(await lines_of(client, done.output_file_id)) == {"a"}
        assert (done.request_counts.completed, done.request_counts.failed) == (1, 0)
        assert done.error_file_id is None, (
            "a line that is cut short has no answer, not even an error"
        )
        assert done.request_counts.total == 3 and not world.server.waiting
        again = await client.batches.cancel(batch.id)
        assert again.status == "cancelled"

    asyncio.run(go())


def test_expired_keeps_what_is_answered_and_says_so_for_the_rest(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        world.server.hold()
        async with world.running():
            content = jsonl(line("a", quick=1), line("b"), line("c"))
            batch = await submit(client, content, completion_window="1s")
            done = await until(client, batch.id)
        assert done.status == "expired" and done.expired_at >= done.expires_at
        assert set(await lines_of(client, done.output_file_id)) == {"a"}
        failures = await lines_of(client, done.error_file_id)
        assert set(failures) == {"b", "c"}
        assert {one["error"]["code"] for one in failures.values()} == {"batch_expired"}

    asyncio.run(go())
