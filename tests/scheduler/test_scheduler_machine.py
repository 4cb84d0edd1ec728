# SPDX-License-Identifier: Apache-2.0
"""Everything that an engine can do to a scheduler, in any order: nothing is lost, mixed or stuck.

Each request ends once and with its own tokens, every block comes back, and once nobody arrives
everything ends. ``make fuzz`` runs more of it, with seeds of its own.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from fake_engine import make_request
from fake_worker import STOP
from fuzz_books import Account
from fuzz_budget import Budget, run_steps
from fuzz_engine import AnyGrammar, FuzzEngine
from fuzz_setups import arrivals, images, is_good_hint, make_engine, prompts, setups, transfers
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pooled import pool_of
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request

from vllm_batchllm.prefix.readable import MARK

Arriving = tuple[dict[str, Any], dict[str, Any]]
arriving = st.tuples(arrivals, transfers)
DISTURBANCES = ["evict", "reset", "reset, preempt all", "reset, preempt all", "abort all"]


class EngineMachine(RuleBasedStateMachine):
    """One engine, from its start until it is empty again."""

    def __init__(self, model: str, feature: str, is_async: bool, budget: Budget) -> None:
        super().__init__()
        self.model, self.feature, self.is_async = model, feature, is_async
        self.budget = budget
        self.engine: FuzzEngine | None = None
        self.num_requests = 0
        self.grammars: list[Future[Any]] = []

    @initialize(setup=setups, arrivals=st.lists(arriving, min_size=1, max_size=12))
    def start(self, setup: dict[str, Any], arrivals: list[Arriving]) -> None:
        self.engine = make_engine(self.model, self.feature, self.is_async, setup)
        self.capacity = self.engine.scheduler.batchllm_snapshot()["max_tokens_held"]
        self.add_all(arrivals)

    @rule(arrivals=st.lists(arriving, min_size=1, max_size=6))
    def add(self, arrivals: list[Arriving]) -> None:
        self.add_all(arrivals)

    def add_all(self, arrivals: list[Arriving]) -> None:
        for arrival, transfer in arrivals:
            self.accept(arrival, transfer if self.feature == "connector" else None)
            self.done("add")

    def accept(self, arrival: dict[str, Any], transfer: dict[str, Any] | None) -> None:
        name = str(self.num_requests)
        kind = arrival["kind"]
        if kind == "session" and self.feature != "plain":
            # vLLM's own sessions lose count of drafts behind a stop, and take no transfers.
            kind = "plain"
        has_hint = arrival["hint"] is not None
        extra = {"expected_output_tokens": arrival["hint"]} if has_hint else {}
        if transfer is not None:
            extra["kv_transfer_params"] = transfer
        if not arrival["reads_cache"] and arrival["readable_tokens"] is not None:
            extra[MARK] = arrival["readable_tokens"]
        sampling = {"extra_args": extra, "skip_reading_prefix_cache": not arrival["reads_cache"]}
        if kind == "grammar":
            sampling["structured_outputs"] = StructuredOutputsParams(choice=["yes", "no"])
        request = self.request(name, arrival, sampling, resumable=kind == "session")
        if kind == "grammar":
            assert request.structured_output_request is not None
            request.structured_output_request.grammar = Future()
            self.grammars.append(request.structured_output_request._grammar)
        account = Account(
            arrival["salt"],
            arrival["stops"],
            is_session=kind == "session",
            may_fail=kind == "grammar" or bool(transfer and transfer["fails"]),
            must_fail=not is_good_hint(arrival["hint"]),
        )
        self.engine.books.accounts[name] = account
        self.ask(account, arrival["prompt"], arrival["max_tokens"])
        self.engine.scheduler.add_request(request)

    def ask(self, account: Account, prompt: list[int], max_tokens: int) -> None:
        account.ask(prompt, max_tokens)
        num_tokens = len(account.context) + len(account.right)
        num_tokens += sum(len(tokens) + most for tokens, most in account.turns)
        account.may_fail |= num_tokens > self.capacity

    def request(
        self, name: str, arrival: dict[str, Any], sampling: dict[str, Any], resumable: bool
    ) -> Request:
        self.num_requests += 1
        return make_request(
            name,
            arrival["prompt"],
            max_tokens=arrival["max_tokens"],
            block_size=self.engine.scheduler.hash_block_size,
            sampling=sampling | {"stop_token_ids": [STOP] if arrival["stops"] else []},
            cache_salt=arrival["salt"],
            mm_features=self.images(arrival, resumable),
            priority=arrival["priority"],
            arrival_time=float(self.num_requests),
            resumable=resumable,
        )

    def images(
        self, arrival: dict[str, Any], resumable: bool
    ) -> list[MultiModalFeatureSpec] | None:
        if self.feature != "images" or resumable or "image" not in arrival:
            return None
        return images(arrival["image"], len(arrival["prompt"]))

    def sessions(self) -> dict[str, Account]:
        accounts = self.engine.books.open()
        return {n: a for n, a in accounts.items() if a.is_session and not a.is_closed}

    @precondition(lambda self: self.engine and self.sessions())
    @rule(
        which=st.integers(0, 99),
        prompt=prompts,
        max_tokens=st.sampled_from(range(1, 12)),
        is_last=st.booleans(),
    )
    def go_on_with_session(
        self, which: int, prompt: list[int], max_tokens: int, is_last: bool
    ) -> None:
        sessions = sorted(self.sessions().items())
        name, account = sessions[which % len(sessions)]
        if is_last:
            self.farewell(name)
        else:
            arrival = {"prompt": prompt, "max_tokens": max_tokens, "priority": 0}
            arrival |= {"salt": account.salt, "stops": account.stops}
            request = self.request(name, arrival, {}, resumable=True)
            self.ask(account, prompt, max_tokens)
            self.engine.scheduler.add_request(request)
        self.done("session")

    def farewell(self, name: str) -> None:
        arrival = {"prompt": [1], "max_tokens": 1, "priority": 0, "salt": None, "stops": False}
        self.engine.close(name, self.request(name, arrival, {}, resumable=False))

    @precondition(lambda self: self.grammars)
    @rule(which=st.integers(0, 99), is_good=st.sampled_from([True, True, False]))
    def compile_grammar(self, which: int, is_good: bool) -> None:
        grammar = self.grammars.pop(which % len(self.grammars))
        if is_good:
            grammar.set_result(AnyGrammar())
        else:
            grammar.set_exception(ValueError("no such grammar"))
        self.done("grammar")

    @rule(how=st.lists(st.sampled_from(["", "", "", "throttle", "abort"]), max_size=10))
    def run_with_aborts(self, how: list[str]) -> None:
        for position, way in enumerate(how):
            aborts = self.known()[position::7] if way == "abort" else ()
            self.engine.step(throttle=way == "throttle", aborts=aborts)
            self.done("step")

    @rule(num_steps=st.integers(1, 12))
    def run(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step()
            self.done("step")

    def known(self) -> list[str]:
        return sorted(self.engine.scheduler.requests, key=int)

    @rule(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=4), is_list=st.booleans())
    def abort(self, numbers: list[int], is_list: bool) -> None:
        known = self.known()
        names = [known[n % len(known)] if n < 80 and known else f"nobody {n}" for n in numbers]
        for request in names if not is_list else [names]:
            self.engine.abort(request)
            self.done("abort")

    @rule(states=st.lists(st.sampled_from(PauseState), min_size=1, max_size=3))
    def pause(self, states: list[PauseState]) -> None:
        for state in (*states, PauseState.UNPAUSED):
            self.engine.scheduler.set_pause_state(state)
            self.engine.step()
            self.done("pause")

    @rule(how=st.sampled_from(DISTURBANCES), first=st.integers(1, 20))
    def disturb(self, how: str, first: int) -> None:
        if how == "evict":
            pool_of(self.engine.scheduler).evict_blocks({first, first + 1})
        elif how == "abort all":  # as pausing in the mode "abort" does, and a shutdown
            self.engine.abort(None)
        else:
            self.engine.reset_prefix_cache(how == "reset, preempt all")
        self.done(how)

    def done(self, what: str) -> None:
        self.budget.count(what)
        self.engine.check()

    def teardown(self) -> None:
        if self.engine is None or not self.engine.is_sound:
            return
        for grammar in self.grammars:
            grammar.set_result(AnyGrammar())
        for name in sorted(self.sessions()):
            self.farewell(name)
            self.engine.check()
        before = self.engine.num_steps
        self.engine.drain()
        self.budget.count("drain", self.engine.num_steps - before)


@pytest.mark.parametrize("feature", ["plain", "drafts", "connector", "images"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_every_request_ends_once_with_its_own_tokens_and_every_block_comes_back(
    llama, fuzz_budget, feature, is_async
) -> None:
    run_steps(
        lambda: EngineMachine(llama, feature, is_async, fuzz_budget),
        fuzz_budget,
        share=1 / 8,
    )
