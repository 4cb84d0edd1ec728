# SPDX-License-Identifier: Apache-2.0
"""Admission: what is refused, for which reason, and what it learns on the way."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_batchllm.admission import preemption_price
from vllm_batchllm.admission.admission_step import RESERVE_RATIO
from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.controller import AdmissionController
from vllm_batchllm.admission.memory_model import LayerKind, MemoryModel
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.pacer import Pacer
from vllm_batchllm.admission.preemption_price import TOKENS_PER_STEP, is_worth_starting
from vllm_batchllm.stats.counters import ScheduleCounters

FOURS = MemoryModel.full(4)


def make(num_blocks: int, **options: Any) -> AdmissionController:
    return AdmissionController(num_blocks, FOURS, AdmissionOptions(**options))


@pytest.fixture
def dear_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is worth a token that is computed again."""
    monkeypatch.setattr(preemption_price, "TOKENS_PER_STEP", 0)


def request(name: str, num_tokens: int = 8, max_tokens: int = 8, **figures: Any) -> Candidate:
    figures = {"hashes": (), "num_prompt_tokens": num_tokens, "length_known": True} | figures
    return Candidate(name, num_tokens=num_tokens, max_tokens=max_tokens, **figures)


class Runner:
    """Runs requests of given lengths on an admission, with nothing shared and no memory limit.

    peak: the most blocks held in any step.
    """

    def __init__(self, admission: AdmissionController, lengths: dict[str, int]) -> None:
        self.admission = admission
        self.lengths = lengths
        self.running: dict[str, list[int]] = {}
        self.peak = self.num_steps = 0

    def run(self, waiting: list[Candidate]) -> None:
        """Until all of ``waiting`` have run, in order."""
        waiting = list(waiting)
        while waiting or self.running:
            self.step(waiting)

    def step(self, waiting: list[Candidate]) -> None:
        admission = self.admission
        self.num_steps += 1
        assert self.num_steps < 10_000, "deadlock"
        tokens = {name: prompt + made for name, (prompt, made) in self.running.items()}
        num_held = sum(-(-number // 4) for number in tokens.values())
        admission.begin_step(
            lambda: tokens,
            num_waiting=len(waiting),
            num_free_blocks=admission.running.capacity - num_held,
        )
        while waiting and admission.step.may_start(waiting[0], anything_running=bool(self.running)):
            candidate = waiting.pop(0)
            admission.step.started(candidate)
            self.running[candidate.request_id] = [candidate.num_prompt_tokens, 0]
        self.peak = max(self.peak, sum(-(-sum(pair) // 4) for pair in self.running.values()))
        for name in list(self.running):
            self.running[name][1] += 1
            if self.running[name][1] >= self.lengths[name]:
                del self.running[name]
                admission.finished(name, self.lengths[name])
        admission.check_integrity(set(self.running))


@pytest.mark.usefixtures("dear_tokens")
def test_known_lengths_never_exceed_the_memory() -> None:
    waiting = [request(str(n), 8, 5 + n % 17) for n in range(120)]
    runner = Runner(make(40), {c.request_id: c.max_tokens for c in waiting})
    runner.run(waiting)
    assert 36 <= runner.peak <= 40, "full, and no fuller"
    counters = runner.admission.counters
    assert counters.num_ended == 120 and counters.refused_peak > 0


@pytest.mark.usefixtures("dear_tokens")
def test_a_request_that_ends_early_is_not_held_up_by_what_comes_after() -> None:
    """Two long ones will fill the memory, long after a short one has come and gone."""
    admission = make(20)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=20)
    for name in "ab":
        admission.step.started(request(name, 4, 34))
    assert not admission.step.may_start(request("long", 4, 34))
    assert admission.step.refusal == "peak"
    admission.begin_step(lambda: {"a": 5, "b": 5}, num_waiting=9, num_free_blocks=16)
    assert admission.step.may_start(request("short", 4, 4))


def test_with_nothing_running_the_head_starts_however_large() -> None:
    admission = make(2)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=2)
    assert admission.step.may_start(request("huge", 400, 400), anything_running=False)
    assert admission.step.may_start(request("huge", 400, 400)), "nothing of ours runs"


def test_once_refused_nobody_else_starts_in_that_step() -> None:
    admission = make(10)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=10)
    admission.step.started(request("a", 8, 8))
    assert not admission.step.may_start(request("b", 40, 8))
    assert not admission.step.may_start(request("c", 4, 1)), "it would overtake"
    assert admission.counters.refused_peak == 1, "counted once a step"
    admission.step.no_memory()
    assert admission.step.refusal == "memory" and admission.counters.refused_memory == 1


def starts_before_memory_ends(num_steps: int = 40, num_running: int = 1) -> bool:
    """Whether one starts that runs so many steps until the memory ends, with 400 - these to go."""
    capacity = (num_running + 1) * (400 + num_steps) // 4
    admission = make(capacity)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=capacity)
    for number in range(num_running):
        admission.step.started(request(str(number), 400, 400))
    return admission.step.may_start(request("last", 400, 400))


def test_few_that_run_long_before_memory_ends_are_worth_being_sent_back() -> None:
    assert starts_before_memory_ends()
    assert not starts_before_memory_ends(num_steps=4), "dearer than what it gets done"
    assert starts_before_memory_ends(num_running=4)
    assert not starts_before_memory_ends(num_running=40), "many share what a step costs"


def test_the_price_is_in_tokens() -> None:
    assert is_worth_starting(10, 4, 10 * TOKENS_PER_STEP / 5 - 1)
    assert not is_worth_starting(10, 4, 10 * TOKENS_PER_STEP / 5)
    assert not is_worth_starting(0, 0, 0), "it would be sent back at once"


def test_lengths_that_nobody_knows_leave_a_share_of_the_memory_free() -> None:
    admission = make(1000)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=1000)
    unknown = request("u", 400, 4000, length_known=False)
    assert admission.step.num_kept_blocks(unknown) == 1000 * RESERVE_RATIO == 20
    assert admission.step.num_kept_blocks(request("k", 8, 8)) == 0
    admission.step.started(unknown)
    assert admission.step.num_kept_blocks(request("k", 8, 8)) == 20, "beside one of them, too"
    for number in range(20):  # whether it fits now is left to vLLM
        assert admission.step.may_start(request(str(number), 400, 4000, length_known=False))


def test_the_share_is_rounded_down_as_the_watermark_of_vllm_is() -> None:
    unknown = request("u", 4, 4, length_known=False)
    for capacity, num_kept in ((6, 0), (49, 0), (50, 1), (149, 2)):
        admission = make(capacity)
        admission.begin_step(dict, num_waiting=9, num_free_blocks=capacity)
        assert admission.step.num_kept_blocks(unknown) == num_kept


def test_beside_known_lengths_an_unknown_one_counts_as_it_is() -> None:
    admission = make(100)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=100)
    admission.step.started(request("known", 8, 233))
    unknown = request("u", 160, 4000, length_known=False)
    assert not admission.step.may_start(request("u", 164, 4000, length_known=False)), "41 + 60 > 98"
    admission.begin_step(lambda: {"known": 8}, num_waiting=9, num_free_blocks=98)
    admission.finished("known", 1)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=100)
    admission.step.started(request("known", 8, 200))
    assert admission.step.may_start(unknown), "40 + 52"
    admission.step.started(unknown)
    assert not admission.step.may_start(request("next", 24, 300)), "81 more of 98"


def test_a_hint_is_planned_with_until_it_is_outgrown() -> None:
    admission = make(100)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=100)
    admission.step.started(request("a", 200, 4000, length_known=False, hint=41))
    assert not admission.step.may_start(request("b", 160, 60)), "60 blocks and 49"
    for made in (1, 60):
        held = {"a": 200 + made}
        admission.begin_step(lambda held=held: held, num_waiting=9, num_free_blocks=40)
        admission.step.may_start(request(f"c{made}", 4000, 8))
    assert admission.running.num_hinted == 0 == admission.running.num_planned
    assert admission.running.memory.peak() == 65, "260 tokens, and nobody knows more"


def test_the_published_rule_looks_at_what_is_held_now() -> None:
    admission = make(20, threshold=0.5)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=20)
    for number in range(5):
        assert admission.step.may_start(request(str(number), 8, 400))
        admission.step.started(request(str(number), 8, 400))
    assert not admission.step.may_start(request("5", 8, 400)), "10 of 20 blocks are held"


def test_what_was_aborted_teaches_nothing_and_unknown_ids_are_ignored() -> None:
    admission = make(100)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=100)
    admission.step.started(request("a", 8, 50, length_known=False))
    admission.finished("a", 3, learn=False)
    admission.finished("nobody", 3)
    admission.preempted("nobody")
    assert admission.counters.num_ended == 0 and admission.mean_output is None
    assert admission.num_running == 0


@pytest.mark.usefixtures("dear_tokens")
def test_several_kv_groups_take_their_blocks_out_of_one_pool() -> None:
    """Each block of tokens takes two blocks here, so half as many requests run."""
    running = {}
    for groups in (1, 2):
        model = MemoryModel([LayerKind(4, groups)], 4)
        admission = AdmissionController(40, model)
        admission.begin_step(dict, num_waiting=9, num_free_blocks=40)
        for n in range(30):
            one = request(str(n), 8, 8)
            if admission.step.may_start(one):
                admission.step.started(one)
        running[groups] = admission.num_running
    assert running == {1: 10, 2: 5}, "8 + 8 - 1 tokens are 4 blocks a group at the end"


def test_an_empty_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        AdmissionController(0, FOURS, counters=ScheduleCounters())


def test_orders_ask_for_the_expected_output() -> None:
    admission = make(4000)

    def expected(candidate: Candidate) -> int:
        return admission.expected_output(candidate.expected_output, candidate.max_tokens)

    unknown = request("u", 8, 2000, length_known=False)
    assert expected(unknown) == 2000, "nothing is known yet"
    assert expected(request("k", 8, 30)) == 30
    assert expected(request("h", 8, 2000, length_known=False, hint=9)) == 9
    Runner(admission, {str(n): 20 for n in range(60)}).run(
        [request(str(n), 8, 2000, length_known=False) for n in range(60)]
    )
    assert expected(unknown) == 20, "as long as the others were"


def test_a_session_is_planned_anew_with_each_turn() -> None:
    admission = make(100)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=100)
    admission.step.started(request("session", 8, 4))
    admission.continued(request("session", 40, 200, num_prompt_tokens=40))
    assert admission.running.memory.peak() == 60, "40 tokens and 200 to come"
    admission.continued(request("session", 48, 900, num_prompt_tokens=48, length_known=False))
    assert admission.running.num_guessed == 1 and admission.running.memory.peak() == 12
    admission.continued(request("session", 48, 900, num_prompt_tokens=48, hint=9))
    assert admission.running.num_guessed == 0
    admission.continued(request("nobody", 8, 8))
    admission.check_integrity({"session"})


def test_whose_blocks_another_engine_keeps_is_not_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other engine would give them up in the end; memory alone may keep it waiting."""
    monkeypatch.setattr(Pacer, "max_running", 1)
    admission = make(100)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=100)
    admission.step.started(request("runs", 8, 8))
    assert admission.step.may_start(request("pulls", 8, 8, holds_elsewhere=True))
    assert not admission.step.may_start(request("waits", 8, 8))
    assert admission.step.refusal == "pace"
