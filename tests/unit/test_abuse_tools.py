# SPDX-License-Identifier: Apache-2.0
"""The drivers of abuse and soak runs notice what they are there to notice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from abuse import (
    exact_problems,
    metric_problems,
    outcome_problems,
    preemption_problems,
    preemptions,
    rest_problems,
    summary,
)
from abuse_clients import Reply, Tally, ask, completion, gather, refusal
from soak import growth_problems, memory_figures


def reply_to(content: bytes, status: int = 200, *, stream: bool = False) -> Reply:
    """What a client makes of an answer that a server gave."""

    async def send() -> Reply:
        transport = httpx.MockTransport(lambda _: httpx.Response(status, content=content))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            (reply,) = await gather([("one", ask(client, completion("Hello", stream=stream)))])
            return reply

    return asyncio.run(send())


def chunk(text: str, reason: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, "finish_reason": reason}]}).encode()


def test_a_whole_answer_is_answered_and_one_without_an_end_is_lost() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    whole = {"choices": [{"text": "Yes", "finish_reason": "stop"}], "usage": usage}
    reply = reply_to(json.dumps(whole).encode())
    assert (reply.outcome, reply.text, reply.prompt_tokens) == ("answered", "Yes", 3)
    whole["choices"] = [{"text": "Yes", "finish_reason": None}]
    assert reply_to(json.dumps(whole).encode()).outcome == "lost"
    assert reply_to(b'{"choices": [').outcome == "lost"


def test_a_stream_is_answered_only_if_it_says_why_it_ended_and_that_it_has() -> None:
    done = b"data: [DONE]"
    lines = [chunk("Ye"), chunk("s", "length"), done]
    assert reply_to(b"\n\n".join(lines) + b"\n\n", stream=True).text == "Yes"
    assert reply_to(b"\n\n".join(lines[:2]) + b"\n\n", stream=True).outcome == "lost"
    assert reply_to(b"\n\n".join([lines[0], done]) + b"\n\n", stream=True).outcome == "lost"
    assert reply_to(b'data: {"error": "engine died"}\n\n', stream=True).outcome == "lost"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('{"error": {"message": "too long"}}', "refused"),
        ('{"detail": "Not Found"}', "refused"),
        ("Internal Server Error", "lost"),
        ("", "lost"),
        ("[1]", "lost"),
    ],
)
def test_a_refusal_needs_a_reason(text, outcome) -> None:
    assert refusal(400, text).outcome == outcome
    assert reply_to(text.encode(), 400).outcome == outcome


def test_a_connection_that_breaks_loses_the_request() -> None:
    async def fail() -> Reply:
        raise httpx.ReadError("reset")

    (reply,) = asyncio.run(gather([("one", fail())]))
    assert reply.outcome == "lost" and reply.name == "one" and "reset" in reply.detail


def test_every_phase_counts() -> None:
    tally = Tally([Reply("answered"), Reply("lost", "a", detail="gone"), Reply("aborted")])
    phase = tally.to_dict() | {"leaked_blocks": 2}
    tally.problems.append("odd")
    total = summary({"one": phase, "two": phase})
    assert total["total"]["sent"] == 6 and total["total"]["lost"] == 2
    assert total["total"]["leaked_blocks"] == 4
    assert total["problems"] == ["one: odd", "two: odd"]
    assert phase["lost_cases"] == {"a: gone": 1}


REST: dict[str, Any] = dict.fromkeys(
    ("requests", "waiting", "running", "blocks_held", "forest_nodes", "heap_entries"), 0
)


def test_what_is_left_at_rest_is_named() -> None:
    assert rest_problems(REST | {"problems": []}) == []
    left = REST | {"problems": ["pool: broken"], "blocks_held": 3, "heap_entries": 5}
    assert rest_problems(left) == [
        "pool: broken",
        "3 blocks_held left at rest",
        "5 heap_entries left at rest",
    ]


def test_metrics_that_fall_or_disagree_are_named() -> None:
    metrics = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0}
    assert metric_problems({"a_total": 2.0}, metrics | {"a_total": 2.0}, {}) == []
    assert metric_problems({"a_total": 2.0}, metrics | {"a_total": 1.0}, {}) == ["a_total fell"]
    busy = metrics | {"vllm:num_requests_waiting": 4.0}
    assert metric_problems({}, busy, {}) == ["vllm:num_requests_waiting is 4 at rest"]


def test_requests_and_tokens_must_add_up() -> None:
    tally = Tally([Reply("answered", prompt_tokens=10, output_tokens=3)] * 2)
    after = {"vllm:request_success_total": 2.0, "vllm:prompt_tokens_total": 20.0}
    assert exact_problems({}, after, tally) == []
    assert len(exact_problems({}, after | {"vllm:prompt_tokens_total": 19.0}, tally)) == 1
    ended = "vllm:request_success_total{length}"
    assert outcome_problems({}, {ended: 2.0}, tally) == []
    assert len(outcome_problems({}, {ended: 1.0}, tally)) == 1
    assert len(outcome_problems({}, {ended: 3.0}, tally)) == 1


def test_memory_that_grows_behind_the_warm_up_is_seen_and_the_warm_up_is_not() -> None:
    def curve(*megabytes: float) -> dict[str, float]:
        samples = [{"t": float(t), "rss": mb * 1e6} for t, mb in enumerate(megabytes)]
        return memory_figures(samples, float(len(samples)))

    warm = [100.0 + min(t, 20) for t in range(100)]
    assert curve(*warm)["growth"] == 0.0 and curve(*warm)["first_mb"] == 100.0
    leaking = curve(*(100.0 + t for t in range(100)))
    assert leaking["growth"] > 0.5
    assert leaking["slope_mb_per_hour"] == pytest.approx(3600, rel=0.01)


def test_whatever_grows_without_load_is_named() -> None:
    sizes = {"priorities": 1, "rss": 100}
    assert growth_problems(sizes, sizes | {"rss": 900}) == []
    assert growth_problems(sizes, sizes | {"priorities": 2}) == [
        "priorities grew from 1 to 2 at rest"
    ]
    many = sizes | {"priorities": 5000}
    assert growth_problems(many, many) == ["5000 priorities, more than 512"]


def test_preemptions_are_read_off_vllms_own_metric() -> None:
    assert preemptions({"metrics": {"vllm:num_preemptions_total": 7.0}}) == 7
    assert preemptions({"metrics": {}}) == 0


def test_preemptions_agree_but_for_those_of_whom_vllm_never_hears_again() -> None:
    def problems(ours: float, theirs: float, num_aborted: int = 0) -> list[str]:
        names = ("vllm_batchllm:preemptions_total", "vllm:num_preemptions_total")
        return preemption_problems(dict(zip(names, (ours, theirs), strict=True)), num_aborted)

    assert not problems(3, 3) and not problems(3, 2, num_aborted=1)
    assert problems(3, 2) == ["preemptions: 3, vLLM says 2"]
    assert problems(2, 3, num_aborted=1), "none may be missing from ours"
    assert not preemption_problems({"vllm:num_preemptions_total": 4.0}, 0), "vLLM's own scheduler"
