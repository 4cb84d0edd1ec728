# SPDX-License-Identifier: Apache-2.0
"""What is done to the server, phase by phase; every phase ends with the server at rest."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import abuse_cases as cases
import httpx
import openai
from abuse_clients import (
    MANNERS,
    TIMEOUT_S,
    Reply,
    Tally,
    abort_after,
    ask,
    ask_chat,
    ask_openai,
    completion,
    gather,
    queue_then_cancel,
    vanish,
)
from live_server import LiveServer

NUM_PREFIXES = 20


@dataclass
class Abuse:
    """A server, the clients that talk to it, and how much of everything: 1.0 is the full size.

    longer: multiple of the output that the first phase asks for. knows_hints: whether the
    server reads hints, and so refuses bad ones.
    """

    server: LiveServer
    scale: float = 1.0
    seed: int = 0
    longer: int = 1
    knows_hints: bool = True

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self.http = httpx.AsyncClient(base_url=self.server.url, timeout=TIMEOUT_S, limits=limits)
        self.client = openai.AsyncOpenAI(
            base_url=f"{self.server.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=0
        )

    def number(self, full: int, least: int = 1) -> int:
        """How many instead of ``full``."""
        return max(round(full * self.scale), least)

    async def mixed(self) -> Tally:
        """300 at once over 20 shared prefixes, streamed and not, three kinds of client.

        Every prompt is asked twice, streamed and whole; the two answers must be equal.
        """
        number = self.number(300, 2 * NUM_PREFIXES)
        replies = await gather(
            (f"{prompt_of(k, seed=self.seed)[0]}", self._mixed_client(k)) for k in range(number)
        )
        answers: dict[str, set[str]] = defaultdict(set)
        for reply in replies:
            answers[reply.name].add(reply.text)
        problems = [f"two answers to {name}" for name, texts in answers.items() if len(texts) > 1]
        return Tally(replies, problems)

    def _mixed_client(self, k: int) -> Awaitable[Reply]:
        name, prompt = prompt_of(k, seed=self.seed)
        num_tokens = self.longer * (3 + sum(map(ord, name)) % 12)
        values = {"max_tokens": num_tokens, "ignore_eos": True}
        stream = (k // NUM_PREFIXES) % 2 == 1
        if name.endswith("question 0"):
            return ask_chat(self.client, prompt, extra_body={"ignore_eos": True}, max_tokens=5)
        if k % 3 == 0:
            more = {"stream_options": {"include_usage": True}} if stream else {}
            return ask(self.http, completion(prompt, stream=stream, **values, **more))
        extra = {"ignore_eos": True}
        return ask_openai(
            self.client, prompt, stream=stream, max_tokens=values["max_tokens"], extra_body=extra
        )

    async def aborts(self) -> Tally:
        """Streams closed after 1 to 6 chunks, among requests that go on."""
        number = self.number(120, 8)
        extra = {"ignore_eos": True}

        def one(k: int) -> Awaitable[Reply]:
            prompt = prompt_of(k, seed=self.seed)[1]
            if k % 2:
                return ask_openai(self.client, prompt, stream=False, max_tokens=12)
            return abort_after(self.client, prompt, 1 + k % 6, max_tokens=400, extra_body=extra)

        return Tally(await gather((f"abort {k}", one(k)) for k in range(number)))

    async def vanishing(self) -> Tally:
        """Connections that are dropped in every way there is, among requests that go on."""
        number = self.number(100, 10)

        def one(k: int) -> Awaitable[Reply]:
            prompt = prompt_of(k, seed=self.seed)[1]
            if k % 4 == 0:
                return ask(self.http, completion(prompt))
            body = completion(prompt, max_tokens=400, ignore_eos=True, stream=k % 2 == 1)
            return vanish(self.server.url, body, MANNERS[k % len(MANNERS)])

        return Tally(await gather((f"vanish {k}", one(k)) for k in range(number)))

    async def bad(self) -> Tally:
        """Bad parameters, bad hints and bodies that are no JSON: all refused."""
        wanted = cases.bad_parameters() | cases.bad_json()
        if self.knows_hints:
            wanted |= cases.bad_hints()
        replies = await self._send(wanted)
        problems = [f"accepted: {r.name}" for r in replies if r.outcome == "answered"]
        return Tally(replies, problems)

    async def large(self) -> Tally:
        """Bodies of 10 MB, a few at a time, while others want an answer."""
        bodies = dict(list(cases.large_bodies().items())[: self.number(11, 4)])
        small = {f"beside {k}": (cases.COMPLETIONS, completion(f"Count: {k}")) for k in range(8)}
        return Tally(await self._send(bodies | small, at_once=3))

    async def unicode(self) -> Tally:
        """Text of every plane: answered, and the same text when it comes in escapes."""
        texts = cases.unicode_prompts(self.number(4), self.seed)
        bodies = {n: (cases.COMPLETIONS, completion(t, max_tokens=2)) for n, t in texts.items()}
        replies = await self._send(bodies, at_once=64)
        problems = [f"refused: {r.name}: {r.detail}" for r in replies if r.outcome == "refused"]
        return Tally(replies + await self._send(cases.LONE_SURROGATES), problems)

    async def cancelled(self) -> Tally:
        """1,000 requests queued, then all of them cancelled."""
        number = self.number(1000, 50)
        bodies = [
            completion(prompt_of(k, seed=self.seed)[1], max_tokens=500, ignore_eos=True)
            for k in range(number)
        ]

        async def queued() -> None:
            await self.until_known(number)

        return Tally(await queue_then_cancel(self.http, bodies, queued))

    async def terminated(self) -> Tally:
        """SIGTERM while requests run and wait: those that were accepted are answered."""
        number = self.number(100, 12)
        bodies = [
            completion(prompt_of(k, seed=self.seed)[1], max_tokens=20, ignore_eos=True)
            for k in range(number)
        ]
        for body in bodies[::2]:
            body["stream"] = True
        asked = asyncio.create_task(
            gather((f"terminated {k}", ask(self.http, body)) for k, body in enumerate(bodies))
        )
        await self.until_known(number, or_done=asked)
        known = (await asyncio.to_thread(self.server.probe))["requests"]
        ended = asyncio.create_task(asyncio.to_thread(self.server.terminate))
        replies = await asked
        code = await ended
        problems = [] if code == 0 else [f"exit code {code}"]
        if not known:
            problems.append("nothing was under way at SIGTERM")
        return Tally(replies, problems)

    async def until_known(
        self, number: int, timeout_s: float = 60, or_done: asyncio.Task[Any] | None = None
    ) -> int:
        """Wait until the engine knows ``number`` requests, as most of them; how many it does."""
        loop = asyncio.get_running_loop()
        deadline, known = loop.time() + timeout_s, 0
        while known < number and loop.time() < deadline and not (or_done and or_done.done()):
            now = (await asyncio.to_thread(self.server.probe))["requests"]
            if now < known:  # they end faster than they come
                break
            known = now
            await asyncio.sleep(0.1)
        return known

    async def _send(self, wanted: dict[str, cases.Case], at_once: int = 16) -> list[Reply]:
        return await gather(
            ((name, ask(self.http, body, path=path)) for name, (path, body) in wanted.items()),
            at_once,
        )

    async def close(self) -> None:
        """Give the connections back."""
        await self.http.aclose()
        await self.client.close()


def prompt_of(k: int, seed: int = 0) -> tuple[str, str]:
    """Name and text of the k-th prompt: a shared prefix, and a question of its own.

    Prompt ``k`` and prompt ``k + NUM_PREFIXES`` are one, for even ``k // NUM_PREFIXES``.
    """
    prefix, question = k % NUM_PREFIXES, k // (2 * NUM_PREFIXES)
    draw = random.Random(seed * 1000 + prefix)
    words = ["river", "stone", "letter", "garden", "winter", "market", "paper", "island"]
    text = " ".join(draw.choice(words) for _ in range(60 + 4 * prefix))
    name = f"prefix {prefix}, question {question}"
    return (
        name,
        f"Document {prefix}: {text}.\nQuestion {question}: what is item {question}? Answer:",
    )


PHASES: tuple[Callable[[Abuse], Awaitable[Tally]], ...] = (
    Abuse.mixed,
    Abuse.aborts,
    Abuse.vanishing,
    Abuse.bad,
    Abuse.large,
    Abuse.unicode,
    Abuse.cancelled,
)
"""All but the last phase, which ends the server."""
