# SPDX-License-Identifier: Apache-2.0
"""While a batch is queued, an engine in another process schedules nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_batchllm.offline.engine_core import held


class SeparateCore:
    """Stands for the client of an engine core in its own process; keeps what it was asked."""

    def __init__(self, paused: bool = False) -> None:
        self.paused = paused
        self.calls: list[tuple[Any, ...]] = []

    def call_utility(self, method: str, *args: Any) -> Any:
        self.calls.append((method, *args))
        if method == "is_scheduler_paused":
            return self.paused
        self.paused = method == "pause_scheduler"
        return None


def test_it_is_paused_inside_and_runs_again_behind() -> None:
    core = SeparateCore()
    with held(SimpleNamespace(engine_core=core)):
        assert core.paused
    assert not core.paused
    assert ("pause_scheduler", "keep", False) in core.calls


def test_it_runs_again_after_an_error() -> None:
    core = SeparateCore()
    with pytest.raises(KeyError), held(SimpleNamespace(engine_core=core)):
        raise KeyError
    assert not core.paused


def test_it_begins_when_told_and_only_once() -> None:
    core = SeparateCore()
    with held(SimpleNamespace(engine_core=core)) as begin:
        begin()
        assert not core.paused
        core.paused = True  # by somebody else
        begin()
    assert core.paused and core.calls.count(("resume_scheduler",)) == 1


def test_an_engine_that_the_user_paused_stays_paused() -> None:
    core = SeparateCore(paused=True)
    with held(SimpleNamespace(engine_core=core)):
        pass
    assert core.paused and core.calls == [("is_scheduler_paused",)]


def test_an_engine_in_this_process_is_left_alone() -> None:
    with held(SimpleNamespace(engine_core=SimpleNamespace(engine_core=object()))):
        pass
