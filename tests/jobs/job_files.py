# SPDX-License-Identifier: Apache-2.0
"""Inputs of jobs, servers that answer at once, and what must hold of a journal."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vllm_batchllm.input.line import JobLine
from vllm_batchllm.jobs.answer import Answer
from vllm_batchllm.jobs.feed import Window
from vllm_batchllm.jobs.line_server import Ending, EngineGoneError
from vllm_batchllm.jobs.session import JobSession, SessionSettings

CHAT = "/v1/chat/completions"
SETTINGS = SessionSettings({"model": "m"})
WINDOW = Window(min_lines=4, max_lines=8, new_tokens=10_000)


def chat_line(custom_id: str, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "m", "messages": messages, **body},
    }


def write_lines(path: Path, lines: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def many_lines(path: Path, num_lines: int, per_group: int = 8) -> Path:
    """Lines of interleaved groups that share long texts; every one has another body."""
    num_groups = max(num_lines // per_group, 1)
    texts = [f"document {group} " * 60 for group in range(num_groups)]
    lines = (chat_line(f"r{i}", f"{texts[i % num_groups]} {i}") for i in range(num_lines))
    return write_lines(path, lines)


class EchoServer:
    """Answers with the text of the last message, after a turn of the loop or a given time.

    dies_with: lines (by custom_id) with which its engine dies.
    """

    def __init__(self, delay_s: float = 0.0, dies_with: Iterable[str] = ()) -> None:
        self.gone = asyncio.Event()
        self.served: list[str] = []
        self.most_at_once = self._now = 0
        self._delay_s, self._dies_with = delay_s, set(dies_with)

    async def serve(self, line: JobLine) -> Answer:
        self.served.append(line.custom_id)
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            await asyncio.sleep(self._delay_s)
            if line.custom_id in self._dies_with:
                raise EngineGoneError("dead")
            return echo(line)
        finally:
            self._now -= 1


def echo(line: JobLine) -> Answer:
    messages = line.body.get("messages")
    text = messages[-1]["content"] if messages else str(line.body.get("prompt"))
    usage = {"prompt_tokens": len(text) // 4 + 1, "completion_tokens": 1}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "text": text, "finish_reason": "stop"}
    return Answer(200, {"choices": [choice], "usage": usage})


def opened(path: Path, journal: Path, settings: SessionSettings = SETTINGS) -> JobSession:
    return JobSession.open(path, journal, settings)


def run(session: JobSession, server: Any, **options: Any) -> tuple[Ending, list[int]]:
    async def go() -> tuple[Ending, list[int]]:
        return await session.run(server, WINDOW, asyncio.Event(), **options)

    return asyncio.run(go())


def run_whole(path: Path, journal: Path, server: Any = None) -> list[dict[str, Any]]:
    """Open, run and close a job; returns what its journal holds."""
    session = opened(path, journal)
    try:
        ending, _ = run(session, server or EchoServer())
        assert ending is Ending.DONE
    finally:
        session.close()
    return records(journal)


def records(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_bytes().splitlines()]


def answers(found: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """By custom_id, what does not differ from run to run. Fails where one stands twice."""
    found = list(found)
    counted = Counter(one["custom_id"] for one in found)
    assert not counted or max(counted.values()) == 1, counted.most_common(3)
    return {one["custom_id"]: stable(one) for one in found}


def stable(record: dict[str, Any]) -> Any:
    """An answer without what is drawn or timed."""
    if record["error"] is not None:
        return record["error"]
    body = record["response"]["body"]
    return {"choices": body["choices"], "usage": body["usage"]}


def damaged(journal: Path, change: Callable[[bytes], bytes]) -> None:
    journal.write_bytes(change(journal.read_bytes()))
