# SPDX-License-Identifier: Apache-2.0
"""Requests that can never be served end with an error, and those behind them are served."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import make_request
from fuzz_books import Account
from fuzz_engine import FuzzEngine
from fuzz_setups import make_engine

SETUP = {
    "order": "dfs",
    "admission": "future",
    "policy": "fcfs",
    "groups": "full",
    "max_wait_s": None,
    "num_blocks": 24,
    "on_failure": "recompute",
    "is_v2": False,
}


def ask(engine: FuzzEngine, name: str, prompt: list[int], **fields: Any) -> Account:
    accounts = engine.books.accounts
    is_session = bool(fields.get("resumable"))
    if name not in accounts:
        accounts[name] = Account(None, stops=False, is_session=is_session, may_fail=True)
    accounts[name].ask(prompt, 3)
    block_size = engine.scheduler.hash_block_size
    engine.scheduler.add_request(make_request(name, prompt, block_size=block_size, **fields))
    return accounts[name]


def run(engine: FuzzEngine, num_steps: int = 40) -> None:
    for _ in range(num_steps):
        engine.step()
        engine.check()


@pytest.mark.parametrize(
    "groups", ["full", "full + sliding window", "full, blocks of two hashes, + sliding window"]
)
def test_a_prompt_that_fits_but_for_the_layers_with_a_window_ends_with_an_error(
    llama, groups
) -> None:
    """Windows take their blocks from the same pool, so the bound is lower than for full layers."""
    engine = make_engine(llama, "plain", False, SETUP | {"groups": groups})
    longest = engine.scheduler.batchllm_snapshot()["max_tokens_held"]
    fits = ask(engine, "fits", [1] * (longest - 3))
    run(engine)
    too_long = ask(engine, "too long", [2] * (longest + 1))
    behind = ask(engine, "behind", [3] * 20)
    run(engine)
    assert (fits.end, too_long.end, behind.end) == ("finished", "error", "finished")


def test_a_session_that_outgrows_the_cache_ends_with_an_error(llama) -> None:
    engine = make_engine(llama, "plain", False, SETUP)
    session = ask(engine, "session", [1] * 60, resumable=True)
    run(engine)
    assert session.is_idle
    ask(engine, "session", [2] * 60, resumable=True)
    behind = ask(engine, "behind", [3] * 20)
    run(engine)
    assert (session.end, behind.end) == ("error", "finished")
    engine.drain()


def test_admission_knows_of_a_request_whose_transfer_has_failed(llama) -> None:
    """It comes back from a queue that is not ours, in the step in which its blocks went."""
    engine = make_engine(llama, "connector", False, SETUP)
    transfer = {"tokens": 4, "is_async": True, "undecided": 0, "delay": 1, "fails": True}
    extra = {"kv_transfer_params": transfer | {"saves": 0}}
    account = ask(engine, "0", [1] * 7, sampling={"extra_args": extra})
    run(engine)
    assert account.end == "finished"
