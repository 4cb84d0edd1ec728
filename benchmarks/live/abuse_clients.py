# SPDX-License-Identifier: Apache-2.0
"""Clients of a server, well-behaved and not; each says what became of its request."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import openai
from live_server import SERVED_NAME

Outcome = Literal["answered", "refused", "aborted", "lost"]
TIMEOUT_S = 600.0
FAILURES = (httpx.HTTPError, openai.OpenAIError, OSError, ValueError, LookupError)
"""What a client runs into that gets no answer, or none that it can read."""


@dataclass(frozen=True)
class Reply:
    """What became of one request.

    outcome: ``answered`` in full; ``refused`` with an HTTP error that has a reason; ``aborted``
    by the client, as planned; else ``lost``. status: of HTTP, 0 without one.
    """

    outcome: Outcome
    name: str = ""
    status: int = 0
    text: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    detail: str = ""


@dataclass
class Tally:
    """The replies of one phase."""

    replies: list[Reply] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        """Replies with this outcome."""
        return sum(reply.outcome == outcome for reply in self.replies)

    def to_dict(self) -> dict[str, Any]:
        """Plain figures; of what was lost or failed inside the server, every case."""
        lost = Counter(f"{r.name}: {r.detail}"[:300] for r in self.replies if r.outcome == "lost")
        failed = Counter(f"{r.name}: {r.detail}"[:300] for r in self.replies if r.status >= 500)
        return {
            "sent": len(self.replies),
            **{name: self.count(name) for name in ("answered", "refused", "aborted", "lost")},
            "statuses": {
                str(k): n for k, n in sorted(Counter(r.status for r in self.replies).items())
            },
            "lost_cases": dict(lost),
            "server_errors": dict(failed),
            "problems": self.problems,
        }


async def gather(
    requests: Iterable[tuple[str, Awaitable[Reply]]], at_once: int = 10_000
) -> list[Reply]:
    """The replies to named requests, so many at a time, in their order.

    What a client lets escape counts as lost, but for an HTTP error of the official client.
    """
    places = asyncio.Semaphore(at_once)

    async def one(name: str, request: Awaitable[Reply]) -> Reply:
        async with places:
            try:
                return replace(await request, name=name)
            except openai.APIStatusError as error:
                return refusal(error.status_code, error.response.text, name)
            except FAILURES as error:
                return Reply("lost", name, detail=repr(error))

    return list(await asyncio.gather(*(one(*request) for request in requests)))


def completion(prompt: Any, **values: Any) -> dict[str, Any]:
    """The body of a completion; ``values`` win over what is usual here."""
    usual = {"model": SERVED_NAME, "prompt": prompt, "max_tokens": 8, "temperature": 0}
    return usual | values


async def ask(client: httpx.AsyncClient, body: Any, *, path: str = "/v1/completions") -> Reply:
    """POST ``body`` (JSON, or bytes as they are) and read the whole answer, streamed or not."""
    is_raw = isinstance(body, bytes)
    content = body if is_raw else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    async with client.stream("POST", path, content=content, headers=headers) as response:
        if response.status_code != 200:
            return refusal(response.status_code, (await response.aread()).decode(errors="replace"))
        if not is_raw and body.get("stream"):
            return await _read_stream(response)
        return read_answer(json.loads(await response.aread()))


def refusal(status: int, text: str, name: str = "") -> Reply:
    """An HTTP error; without a reason in JSON it counts as lost."""
    try:
        answer = json.loads(text)
        reason = answer.get("error") or answer.get("detail")
    except (ValueError, AttributeError):
        reason = None
    outcome: Outcome = "refused" if reason else "lost"
    return Reply(outcome, name, status, detail=str(reason or text)[:300])


def read_answer(answer: dict[str, Any]) -> Reply:
    """The reply in a completion or chat completion; without an end it is lost."""
    choices, usage = answer["choices"], answer["usage"]
    texts = [c["text"] if "text" in c else c["message"]["content"] or "" for c in choices]
    ended = choices and all(choice["finish_reason"] for choice in choices)
    return Reply(
        "answered" if ended else "lost",
        status=200,
        text="".join(texts),
        prompt_tokens=usage["prompt_tokens"],
        output_tokens=usage["completion_tokens"],
        detail="" if ended else "no finish_reason",
    )


async def _read_stream(response: httpx.Response) -> Reply:
    """A stream is answered if it says why it ended, and then that it has ended."""
    text, reason, usage, is_done = "", None, {}, False
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            is_done = True
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            return Reply("lost", status=200, detail=str(chunk["error"])[:300])
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            delta = choice.get("delta") or {}
            text += choice.get("text") or delta.get("content") or ""
            reason = choice.get("finish_reason") or reason
    ended = is_done and reason is not None
    return Reply(
        "answered" if ended else "lost",
        status=200,
        text=text,
        prompt_tokens=usage.get("prompt_tokens", 0),
        output_tokens=usage.get("completion_tokens", 0),
        detail="" if ended else f"the stream broke off: {reason=} {is_done=}",
    )


async def ask_openai(
    client: openai.AsyncOpenAI, prompt: str, *, stream: bool, **values: Any
) -> Reply:
    """The same through the official client."""
    body = completion(prompt, **values)
    if not stream:
        answer = await client.completions.create(**body)
        return read_answer(answer.model_dump())
    text, reason, usage = "", None, None
    options = {"include_usage": True}
    async for chunk in await client.completions.create(**body, stream=True, stream_options=options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text, reason = text + choice.text, choice.finish_reason or reason
    if reason is None or usage is None:
        return Reply("lost", status=200, detail=f"the stream broke off: {reason=}")
    return Reply("answered", "", 200, text, usage.prompt_tokens, usage.completion_tokens)


async def ask_chat(client: openai.AsyncOpenAI, prompt: str, **values: Any) -> Reply:
    """One turn of a chat through the official client."""
    body = {"model": SERVED_NAME, "max_tokens": 8, "temperature": 0} | values
    messages = [{"role": "user", "content": prompt}]
    answer = await client.chat.completions.create(messages=messages, **body)
    return read_answer(answer.model_dump())


async def abort_after(
    client: openai.AsyncOpenAI, prompt: str, num_chunks: int, **values: Any
) -> Reply:
    """Close a stream after so many chunks; one that had ended by then counts as answered."""
    body = completion(prompt, **values)
    seen, reason = 0, None
    async with await client.completions.create(**body, stream=True) as stream:
        async for chunk in stream:
            seen += 1
            reason = chunk.choices[0].finish_reason if chunk.choices else reason
            if seen >= num_chunks:
                break
    return Reply("answered" if reason else "aborted", status=200)


async def vanish(url: str, body: dict[str, Any], manner: str) -> Reply:
    """Be gone without a word.

    manner: ``unread`` sends all and reads nothing; ``reset`` does so and resets the connection;
    ``half`` sends half of the body; ``header`` half of the header; ``silent`` only connects.
    """
    place = urlsplit(url)
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    ).encode()
    wanted = {
        "unread": head + content,
        "reset": head + content,
        "half": head + content[: len(content) // 2],
        "header": head[: len(head) // 2],
        "silent": b"",
    }[manner]
    _, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(wanted)
    await writer.drain()
    await asyncio.sleep(0.3)
    if manner == "reset":
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    return Reply("aborted", f"vanish {manner}")


MANNERS = ("unread", "reset", "half", "header", "silent")

Cancelled = Callable[[], Awaitable[None]]


async def queue_then_cancel(
    client: httpx.AsyncClient, bodies: list[dict[str, Any]], wait_until_queued: Cancelled
) -> list[Reply]:
    """Send all, cancel all once ``wait_until_queued`` returns; some may have been answered."""
    tasks = [asyncio.create_task(ask(client, body)) for body in bodies]
    await wait_until_queued()
    for task in tasks:
        task.cancel()
    replies = []
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Reply):
            replies.append(outcome)
        elif isinstance(outcome, asyncio.CancelledError):
            replies.append(Reply("aborted", "cancelled"))
        else:
            replies.append(Reply("lost", "cancelled", detail=repr(outcome)))
    return replies
