# SPDX-License-Identifier: Apache-2.0
"""What was asked of an engine, and what came back: each request once, whole, and its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fake_worker import STOP, right_output
from vllm.v1.engine import EngineCoreOutput, FinishReason


@dataclass
class Account:
    """One request, or one streaming session, whose inputs come as turns.

    may_fail, must_fail: whether it can, or has to, end with an error. end: how it did, or None.
    """

    salt: str | None
    stops: bool
    is_session: bool = False
    may_fail: bool = False
    must_fail: bool = False
    end: str | None = None
    is_closed: bool = False
    is_idle: bool = False
    context: list[int] = field(default_factory=list)
    turns: deque[tuple[list[int], int]] = field(default_factory=deque)
    right: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    num_deliveries: int = 0

    def ask(self, prompt: list[int], max_tokens: int) -> None:
        """A turn is to come: at once, if none is under way."""
        self.turns.append((prompt, max_tokens))
        if self.is_idle or not self.context:
            self._begin()

    def close(self) -> None:
        """No further turn will come."""
        self.is_closed = True
        if self.is_idle:
            self.end = "closed"

    def deliver(self, output: EngineCoreOutput) -> None:
        tokens, reason = output.new_token_ids, output.finish_reason
        assert self.end is None, f"an output after the end ({self.end})"
        # A session may have ended its turn in the very step that was to end it.
        is_refused = self.must_fail and reason is FinishReason.ERROR
        assert is_refused or not self.is_idle, "an output without a question"
        assert tokens or reason is not None, "an output that says nothing"
        self.given += tokens
        self.num_deliveries += 1
        assert self.given == self.right[: len(self.given)], "tokens of another request"
        if reason is FinishReason.ERROR:
            assert self.may_fail or self.must_fail, "an error that nobody has earned"
            self.end = "error"
        elif reason is not None:
            assert self.given == self.right, "it ended too early"
            has_stopped = self.stops and self.given[-1] == STOP
            assert reason is (FinishReason.STOP if has_stopped else FinishReason.LENGTH)
            self._turn_is_over()

    def _begin(self) -> None:
        prompt, max_tokens = self.turns.popleft()
        self.context += prompt
        self.is_idle, self.given = False, []
        self.right = right_output(self.context, self.salt, max_tokens, self.stops)

    def _turn_is_over(self) -> None:
        if not self.is_session:
            self.end = "finished"
            return
        self.context += self.given[:-1]  # the last token was never computed, and is dropped
        self.is_idle = True
        if self.turns:
            self._begin()
        elif self.is_closed:
            self.end = "finished"


class Books:
    """The accounts of all requests of an engine, by id."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}

    def salt_of(self, request_id: str) -> str | None:
        return self.accounts[request_id].salt

    def open(self) -> dict[str, Account]:
        """Those that have not ended."""
        return {name: account for name, account in self.accounts.items() if account.end is None}

    def take(self, outputs: dict[int, Any]) -> None:
        """Enter the outputs of one step."""
        for batch in outputs.values():
            for output in batch.outputs:
                self.accounts[output.request_id].deliver(output)

    def aborted(self, request_ids: Iterable[str]) -> None:
        """The engine says that it has given these up."""
        for request_id in request_ids:
            account = self.accounts[request_id]
            assert account.end is None, f"{request_id} is aborted, but has ended ({account.end})"
            account.end = "aborted"

    def num_deliveries(self) -> int:
        return sum(account.num_deliveries for account in self.accounts.values())

    def check_all_have_ended(self) -> None:
        assert not self.open(), f"requests without an end: {sorted(self.open())}"
        for request_id, account in self.accounts.items():
            if account.must_fail and account.end == "finished":
                # It may have ended in the very step that was to end it.
                assert account.num_deliveries <= 1, f"{request_id} was to be refused"
