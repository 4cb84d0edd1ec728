# SPDX-License-Identifier: Apache-2.0
"""A process that ends between any two steps of a batch: the next one goes on, and every line is answered once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from batch_api_world import World, jsonl, line, lines_of, submit, until

LINES = jsonl(line("a"), line("b", fail=1), line("c"), line("a2", content="say a"), "{bad")


class Killed(BaseException):
    """The process is gone."""


class Kill:
    """Ends the process at the n-th place (from 1) that it passes; never for 0. `passed`: all of them."""

    def __init__(self, at: int = 0) -> None:
        self._at, self.passed = at, list[str]()
        self.is_done = asyncio.Event()

    def __call__(self, place: str) -> None:
        if self.is_done.is_set():
            raise Killed  # a process that is gone does nothing any more
        self.passed.append(place)
        if len(self.passed) == self._at:
            self.is_done.set()
            raise Killed(place)


async def first_life(folder: Path, kill: Kill, case: str) -> str:
    """A process that gets a batch and ends where ``kill`` says; the batch's id."""
    world = World(folder, failpoint=kill)
    client = world.client()
    window = "1s" if case == "expired" else "24h"
    if case != "completed":
        world.server.hold()
    batch = await submit(client, LINES, completion_window=window)
    task = asyncio.create_task(world.runner().run())
    finished = asyncio.create_task(until(client, batch.id))
    if case == "cancelled":
        while len(world.server.waiting) < 3 and not kill.is_done.is_set():
            await asyncio.sleep(0.01)
        await client.batches.cancel(batch.id)
    killed = asyncio.create_task(kill.is_done.wait())
    await asyncio.wait([killed, finished], return_when=asyncio.FIRST_COMPLETED)
    for one in (task, killed, finished):
        one.cancel()
    await asyncio.gather(task, killed, finished, return_exceptions=True)
    world.store.database.close()
    return batch.id


async def second_life(folder: Path, batch_id: str) -> tuple[Any, dict[Any, Any], dict[Any, Any]]:
    """The next process over the same folder: the batch at its end, its answers, its failures."""
    world = World(folder)
    client = world.client()
    async with world.running():
        batch = await until(client, batch_id)
        await asyncio.sleep(0.05)
    found = (
        await lines_of(client, batch.output_file_id),
        await lines_of(client, batch.error_file_id),
    )
    files = {one.id async for one in client.files.list()}
    expected = {batch.input_file_id, batch.output_file_id, batch.error_file_id} - {None}
    assert files == expected
    on_disk = {path.name for path in (folder / "files").iterdir() if path.suffix != ".part"}
    assert on_disk == expected
    return batch, *found


def places(folder: Path, case: str) -> list[str]:
    kill = Kill()
    folder.mkdir()
    asyncio.run(first_life(folder, kill, case))
    return kill.passed


@pytest.mark.parametrize("case", ["completed", "cancelled", "expired"])
def test_killed_anywhere_every_line_is_answered_once(tmp_path, case) -> None:
    passed = places(tmp_path / "whole", case)
    assert {"moved to in_progress", "results written", "finished"} <= set(passed)
    for at in range(1, len(passed) + 1):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        check = CHECKS[case]
        batch_id = asyncio.run(first_life(folder, Kill(at), case))
        check(*asyncio.run(second_life(folder, batch_id)))


def check_completed(batch: Any, answers: dict[Any, Any], failures: dict[Any, Any]) -> None:
    assert batch.status == "completed"
    assert set(answers) == {"a", "c", "a2"} and set(failures) == {"b", None}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (5, 3, 2)


def check_cancelled(batch: Any, answers: dict[Any, Any], failures: dict[Any, Any]) -> None:
    assert batch.status == "cancelled" and not answers
    assert set(failures) <= {None}


def check_expired(batch: Any, answers: dict[Any, Any], failures: dict[Any, Any]) -> None:
    # A process that begins anew within the second answers what is left of it.
    assert batch.status in ("expired", "completed")
    assert len(answers) + len(failures) == 5
    codes = {one["error"]["code"] for one in failures.values()}
    assert ("batch_expired" in codes) == (batch.status == "expired")


CHECKS: dict[str, Callable[..., None]] = {
    "completed": check_completed,
    "cancelled": check_cancelled,
    "expired": check_expired,
}
