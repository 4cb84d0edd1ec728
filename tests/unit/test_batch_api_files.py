# SPDX-License-Identifier: Apache-2.0
"""Files over HTTP: what is kept, what is refused, and that nothing half-written or of others is to be seen."""

from __future__ import annotations

import asyncio
import errno
import os

import httpx
import pytest
from batch_api_world import World, jsonl, line, submit
from openai import APIStatusError
from starlette.requests import ClientDisconnect

from vllm_batchllm.batch_api.contents import Contents, Part

FORM = {"purpose": "batch"}


def of(content: bytes, name: str = "in.jsonl") -> dict[str, tuple[str, bytes]]:
    return {"file": (name, content)}


def left(world: World) -> list[str]:
    return sorted(path.name for path in (world.options.directory / "files").iterdir())


def test_a_file_comes_and_goes(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        content = os.urandom(300_000) + b"\r\n--boundary\r\n"
        file = await client.files.create(file=("a/../b.jsonl", content), purpose="batch")
        assert file.bytes == len(content) and file.status == "processed" and file.object == "file"
        assert (await client.files.retrieve(file.id)).id == file.id
        assert (await client.files.content(file.id)).content == content
        assert left(world) == [file.id], "no name of a client's is a name on disk"
        assert (await client.files.delete(file.id)).deleted and not left(world)
        with pytest.raises(APIStatusError, match="404"):
            await client.files.retrieve(file.id)

    asyncio.run(go())


def test_keys_see_only_their_own(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        alice, bob = world.client("alice"), world.client("bob")
        batch = await submit(alice, jsonl(line("a")))
        tries = (
            bob.files.retrieve(batch.input_file_id),
            bob.files.content(batch.input_file_id),
            bob.files.delete(batch.input_file_id),
            bob.files.list(after=batch.input_file_id),
            bob.batches.retrieve(batch.id),
            bob.batches.cancel(batch.id),
            submit(bob, b"", input_file_id=batch.input_file_id),
        )
        for one in tries[:6]:
            with pytest.raises(APIStatusError) as raised:
                await one
            assert raised.value.status_code == 404
        tries[6].close()
        assert not (await bob.batches.list()).data and not (await bob.files.list()).data
        async with world.http(None) as nobody:
            assert (await nobody.post("/v1/files", files=of(b"x\n"), data=FORM)).is_success
            assert len((await nobody.get("/v1/files")).json()["data"]) == 1

    asyncio.run(go())


def test_pages(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)
        client = world.client()
        made = [
            (await client.files.create(file=(f"{n}", b"x"), purpose="batch")).id for n in range(5)
        ]
        assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
        assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
        async with world.http() as http:
            page = (await http.get("/v1/files", params={"limit": 2, "after": made[4]})).json()
            assert [one["id"] for one in page["data"]] == made[3:1:-1]
            assert page["has_more"] and (page["first_id"], page["last_id"]) == (made[3], made[2])
            page = (await http.get("/v1/files", params={"purpose": "batch_output"})).json()
            assert page == {
                "object": "list",
                "data": [],
                "first_id": None,
                "last_id": None,
                "has_more": False,
            }

    asyncio.run(go())


def form(body: bytes, kind: str = "multipart/form-data; boundary=x") -> dict[str, object]:
    return {"content": body, "headers": {"content-type": kind}}


PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
REFUSED: dict[str, tuple[int, str, str, str, dict[str, object]]] = {
    "too large": (413, "1 MiB", "POST", "/v1/files", {"files": of(b"x" * 2**20 + b"y"), "data": FORM}),
    "no purpose": (400, "purpose", "POST", "/v1/files", {"files": of(b"x")}),
    "purpose": (400, "'vision'", "POST", "/v1/files", {"files": of(b"x"), "data": {"purpose": "vision"}}),
    "field": (400, "'more'", "POST", "/v1/files", {"files": of(b"x"), "data": FORM | {"more": "1"}}),
    "no file": (400, "no file", "POST", "/v1/files", form(b"--x\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--x--\r\n")),
    "json": (400, "multipart", "POST", "/v1/files", {"json": {}}),
    "no boundary": (400, "multipart", "POST", "/v1/files", form(b"", "multipart/form-data")),
    "garbage": (400, "form", "POST", "/v1/files", form(b"garbage")),
    "cut off": (400, "in the middle", "POST", "/v1/files", form(PART + b"abc")),
    "two files": (400, "one at a time", "POST", "/v1/files", form((PART + b"a\r\n") * 2 + b"--x--\r\n")),
    "a large field": (400, "65536 bytes", "POST", "/v1/files", {"files": of(b"x"), "data": {"purpose": "b" * 70_000}}),
    "limit": (400, "limit", "GET", "/v1/files?limit=0", {}),
    "limit of letters": (400, "'ten'", "GET", "/v1/batches?limit=ten", {}),
    "order": (400, "'up'", "GET", "/v1/files?order=up", {}),
    "after": (404, "'file-1'", "GET", "/v1/files?after=file-1", {}),
    "a path": (404, "", "GET", "/v1/files/..%2f..%2fbatches.sqlite3/content", {}),
    "no such file": (404, "'file-x'", "DELETE", "/v1/files/file-x", {}),
    "no such batch": (404, "'batch_x'", "POST", "/v1/batches/batch_x/cancel", {}),
    "no json": (400, "JSON", "POST", "/v1/batches", {"content": b"{"}),
    "no object": (400, "dict", "POST", "/v1/batches", {"json": []}),
    "no endpoint": (400, "endpoint is missing", "POST", "/v1/batches", {"json": {}}),
    "body": (413, "larger", "POST", "/v1/batches", {"content": b" " * (2**20 + 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_thing_and_leaves_nothing(tmp_path, name) -> None:
    status, word, method, url, request = REFUSED[name]

    async def go() -> httpx.Response:
        world = World(tmp_path, max_file_bytes=1 << 20)
        async with world.http() as http:
            answer = await http.request(method, url, **request)
        assert not left(world)
        return answer

    answer = asyncio.run(go())
    assert answer.status_code == status, answer.text
    if name != "a path":
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and word in error["message"]
        assert error["type"] == "invalid_request_error"


CREATED = {
    "endpoint": ({"endpoint": "/v1/magic"}, "'/v1/magic'"),
    "window": ({"completion_window": "31d"}, "'31d'"),
    "no window": ({"completion_window": None}, "completion_window is missing"),
    "metadata": ({"metadata": {"k": 1}}, r"metadata\['k'\]"),
    "pairs": ({"metadata": {str(n): "" for n in range(17)}}, "17 pairs"),
    "key": ({"metadata": {"k" * 65: ""}}, "65 characters"),
    "field": ({"extra_body": {"colour": "red"}}, "'colour'"),
}


@pytest.mark.parametrize("name", CREATED)
def test_a_batch_that_is_not_created_says_why(tmp_path, name) -> None:
    fields, words = CREATED[name]

    async def go() -> None:
        client = World(tmp_path).client()
        with pytest.raises(APIStatusError, match=words) as raised:
            await submit(client, jsonl(line("a")), **fields)
        assert raised.value.status_code == 400 and not (await client.batches.list()).data

    asyncio.run(go())


def test_limits_of_owners_and_files_in_use(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path, max_queued=2)
        client = world.client()
        first = await submit(client, jsonl(line("a")))
        await submit(client, jsonl(line("b")))
        with pytest.raises(APIStatusError, match="--batch-max-queued") as raised:
            await submit(client, jsonl(line("c")))
        assert raised.value.status_code == 429
        await submit(world.client("bob"), jsonl(line("d")))
        with pytest.raises(APIStatusError, match=first.id) as raised:
            await client.files.delete(first.input_file_id)
        assert raised.value.status_code == 409
        async with world.running():
            while (await client.batches.retrieve(first.id)).status != "completed":
                await asyncio.sleep(0.02)
        assert (await client.files.delete(first.input_file_id)).deleted
        with pytest.raises(APIStatusError, match="completed") as raised:
            await client.batches.cancel(first.id)
        assert raised.value.status_code == 409

    asyncio.run(go())


@pytest.mark.parametrize("number, status", [(errno.ENOSPC, 507), (errno.EIO, 500)])
@pytest.mark.parametrize("place", ["write", "finish"])
def test_a_full_disk_is_told_and_nothing_stays(
    tmp_path, monkeypatch, number, status, place
) -> None:
    async def go() -> None:
        world = World(tmp_path)

        def full(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        if place == "write":
            monkeypatch.setattr(Part, "write", full)
        else:
            monkeypatch.setattr(os, "fsync", full)
        async with world.http() as http:
            answer = await http.post("/v1/files", files=of(b"x" * 1000), data=FORM)
        assert answer.status_code == status and "Nothing of it was kept" in answer.text
        assert answer.json()["error"]["type"] == "server_error" and not left(world)
        assert not (await world.client().files.list()).data

    asyncio.run(go())


def test_a_client_that_goes_away_leaves_nothing(tmp_path) -> None:
    async def go() -> None:
        world = World(tmp_path)

        async def half() -> object:
            yield PART + b"abc"
            raise ClientDisconnect

        async with world.http() as http:
            await http.post(
                "/v1/files",
                content=half(),
                headers={"content-type": "multipart/form-data; boundary=x"},
            )
        assert not left(world)

    asyncio.run(go())


def test_what_belongs_to_nobody_is_removed_when_it_is_old(tmp_path) -> None:
    contents = Contents(tmp_path)
    for name in ("file-" + "0" * 32, "file-" + "1" * 32, "abc.part", "stranger"):
        (tmp_path / "files" / name).write_bytes(b"x")
        os.utime(tmp_path / "files" / name, (0, 0))
    assert sorted(contents.left_over(10_000.0)) == ["file-" + "0" * 32, "file-" + "1" * 32]
    assert not (tmp_path / "files" / "abc.part").exists()
    assert (tmp_path / "files" / "stranger").exists()
    for name in ("../x", "file-1", "", "file-" + "0" * 33):
        with pytest.raises(ValueError, match="not an id"):
            contents.file(name)
