# SPDX-License-Identifier: Apache-2.0
"""Admission: what is refused, for which reason, and what it learns on the way."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_batchllm.admission.candidate import Candidate
from vllm_batchllm.admission.controller import AdmissionController
from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.admission.guessed.overcommit import MIN_OVERCOMMIT
from vllm_batchllm.admission.options import AdmissionOptions
from vllm_batchllm.admission.step_costs import StepCosts
from vllm_batchllm.stats.counters import ScheduleCounters

COMPUTE_BOUND = StepCosts(step_s=1e-3, prefill_s=1e-3)
STEP_BOUND = StepCosts(step_s=1.0, prefill_s=1e-6)
UNTIMED = Environment("cpu", clock=None)


def make(num_blocks: int, costs: StepCosts = COMPUTE_BOUND, **options: Any) -> AdmissionController:
    return AdmissionController(num_blocks, 4, UNTIMED, AdmissionOptions(**options), costs=costs)


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
            num_free_blocks=admission.running.num_blocks - num_held,
        )
        while waiting and admission.step.may_start(waiting[0], anything_running=bool(self.running)):
            candidate = waiting.pop(0)
            admission.step.started(candidate)
            self.running[candidate.request_id] = [candidate.num_prompt_tokens, 0]
        self.peak = max(self.peak, sum(-(-sum(pair) // 4) for pair in self.running.values()))
        admission.end_step(sum(tokens.values()), len(self.running))
        for name in list(self.running):
            self.running[name][1] += 1
            if self.running[name][1] >= self.lengths[name]:
                del self.running[name]
                admission.finished(name, self.lengths[name])
        admission.check_integrity(set(self.running))


def test_known_lengths_never_exceed_the_memory() -> None:
    waiting = [request(str(n), 8, 5 + n % 17) for n in range(120)]
    runner = Runner(make(40, overcommit=1.0, pace=0), {c.request_id: c.max_tokens for c in waiting})
    runner.run(waiting)
    assert 36 <= runner.peak <= 40, "full, and no fuller"
    counters = runner.admission.counters
    assert counters.num_lengths == 120
    assert counters.length_error_tokens == 0, "what is known is predicted exactly"
    assert counters.refused_peak > 0 and counters.refused_pace == 0


def test_a_request_that_ends_early_is_not_held_up_by_what_comes_after() -> None:
    """Two long ones will fill the memory, long after a short one has come and gone."""
    admission = make(20)
    admission.begin_step(dict, num_waiting=3, num_free_blocks=20)
    for name in "ab":
        admission.step.started(request(name, 4, 34))
    assert not admission.step.may_start(request("long", 4, 34))
    assert admission.step.refusal == "peak"
    admission.begin_step(lambda: {"a": 5, "b": 5}, num_waiting=1, num_free_blocks=16)
    assert admission.step.may_start(request("short", 4, 4))


def test_with_nothing_running_the_head_starts_however_large() -> None:
    admission = make(2)
    admission.begin_step(dict, num_waiting=1, num_free_blocks=2)
    assert admission.step.may_start(request("huge", 400, 400), anything_running=False)
    assert admission.step.may_start(request("huge", 400, 400)), "nothing of ours runs"


def test_once_refused_nobody_else_starts_in_that_step() -> None:
    admission = make(10)
    admission.begin_step(dict, num_waiting=3, num_free_blocks=10)
    admission.step.started(request("a", 8, 8))
    assert not admission.step.may_start(request("b", 40, 8))
    assert not admission.step.may_start(request("c", 4, 1)), "it would overtake"
    assert admission.counters.refused_peak == 1, "counted once a step"
    admission.step.no_memory()
    assert admission.step.refusal == "memory" and admission.counters.refused_memory == 1


def test_overcommitment_admits_more_but_not_into_the_next_steps() -> None:
    def admitted(overcommit: float) -> int:
        admission = make(30, overcommit=overcommit)
        admission.begin_step(dict, num_waiting=99, num_free_blocks=30)
        number = 0
        while number < 99 and admission.step.may_start(request(str(number), 4, 40)):
            admission.step.started(request(str(number), 4, 40))
            number += 1
        return number

    strict, loose, looser = admitted(1.0), admitted(1.5), admitted(99.0)
    assert strict == 2 and loose == 4, "11 blocks each at the end"
    assert loose < looser <= 30 // 3, "in six steps each holds three blocks"


def test_what_is_certain_is_only_overcommitted_if_the_user_says_so() -> None:
    """Steps are dear, so the rule would overcommit; known lengths make preemptions certain."""

    def num_running(known: bool, **options: Any) -> int:
        admission = make(30, STEP_BOUND, pace=0, **options)
        admission.begin_step(dict, num_waiting=99, num_free_blocks=30)
        admission.step.started(request("kept", 4, 40, length_known=known))
        for number in range(10):  # lives to choose by
            admission.step.started(request(f"old {number}", 4, 40, length_known=known))
            admission.finished(f"old {number}", 40)
        for _ in range(20):
            admission.begin_step(lambda: {"kept": 5}, num_waiting=99, num_free_blocks=28)
        assert options or admission.limits.overcommit > 1
        number = 1
        while admission.step.may_start(request(str(number), 4, 40, length_known=known)):
            admission.step.started(request(str(number), 4, 40, length_known=known))
            number += 1
        return number

    assert num_running(known=True) == 2, "11 blocks each at the end"
    assert num_running(known=True, overcommit=1.5) == 4
    assert num_running(known=False) == 4


def test_short_lives_fill_what_their_last_block_would_leave_idle() -> None:
    """One token of prompt and six of output: the last ones need a second block for a moment."""

    def num_admitted(costs: StepCosts) -> int:
        admission = make(10, costs)
        admission.begin_step(dict, num_waiting=99, num_free_blocks=10)
        for number in range(10):  # lives to choose by
            admission.step.started(request(f"old {number}", 1, 6))
            admission.finished(f"old {number}", 6)
        started: dict[str, int] = {}
        for _ in range(20):
            admission.begin_step(lambda: started, num_waiting=99, num_free_blocks=10 - len(started))
        while admission.step.may_start(request(str(len(started)), 1, 6), anything_running=True):
            admission.step.started(request(str(len(started)), 1, 6))
            started[str(len(started))] = 1
            if len(started) == 10:
                break
        return len(started)

    assert num_admitted(COMPUTE_BOUND) == 5, "two blocks each"
    assert num_admitted(STEP_BOUND) == 7, "half as many again"


def starts_beside_another(
    costs: StepCosts = STEP_BOUND, num_waiting: int = 1, options: Any = None, **figures: Any
) -> bool:
    """Whether a request starts that fits for now, and not to its end."""
    admission = make(10, costs, **(options or {}))
    admission.begin_step(dict, num_waiting=2, num_free_blocks=10)
    admission.step.started(request("a", 8, 24))
    admission.begin_step(lambda: {"a": 9}, num_waiting=num_waiting, num_free_blocks=7)
    return admission.step.may_start(request("b", 8, 24, **figures))


def test_the_last_one_that_waits_starts_where_that_costs_less_than_the_steps_it_saves() -> None:
    assert starts_beside_another()
    assert not starts_beside_another(num_waiting=2), "somebody behind it can have the memory"
    assert not starts_beside_another(was_preempted=True), "tried once"
    assert not starts_beside_another(options={"overcommit": 1.0}), "as set"
    assert not starts_beside_another(costs=COMPUTE_BOUND), "its prompt is dearer than the steps"
    assert not starts_beside_another(options={"threshold": 0.3}), "the published rule is a rule"


def test_who_starts_first_leaves_the_next_as_the_last() -> None:
    admission = make(10, STEP_BOUND)
    admission.begin_step(dict, num_waiting=3, num_free_blocks=10)
    admission.step.started(request("a", 8, 24))
    assert not admission.step.may_start(request("b", 8, 24)), "one more waits behind it"
    admission.begin_step(dict, num_waiting=2, num_free_blocks=7)
    admission.step.started(request("short", 4, 1))
    assert admission.step.may_start(request("c", 8, 24))


def test_the_published_rule_looks_at_what_is_held_now() -> None:
    admission = make(20, threshold=0.5)
    admission.begin_step(dict, num_waiting=9, num_free_blocks=20)
    for number in range(5):
        assert admission.step.may_start(request(str(number), 8, 400))
        admission.step.started(request(str(number), 8, 400))
    assert not admission.step.may_start(request("5", 8, 400)), "10 of 20 blocks are held"


def test_equal_lives_are_paced_and_their_memory_stays_even() -> None:
    waiting = [request(str(n), 8, 40) for n in range(400)]
    lengths = {c.request_id: 40 for c in waiting}
    paced, lockstep = (Runner(make(200, **how), lengths) for how in ({}, {"pace": 0}))
    for runner in (paced, lockstep):
        runner.run(waiting)
        assert runner.peak <= 200
    assert paced.admission.counters.refused_pace > 0
    assert paced.num_steps < lockstep.num_steps


def test_unknown_lengths_are_learned_and_hints_win() -> None:
    admission = make(4000)
    lengths = {str(n): 20 for n in range(60)}
    runner = Runner(admission, lengths)
    runner.run([request(str(n), 8, 2000, length_known=False) for n in range(60)])
    admission.begin_step(dict, num_waiting=1, num_free_blocks=4000)
    before = admission.counters.predicted_tokens
    for name, hint, expected in (("x", None, 20), ("y", 7, 7)):
        admission.step.started(request(name, 8, 2000, length_known=False, hint=hint))
        admission.finished(name, 20)
        predicted = admission.counters.predicted_tokens - before
        before = admission.counters.predicted_tokens
        assert predicted == pytest.approx(expected, abs=1)


def test_what_was_aborted_teaches_nothing_and_unknown_ids_are_ignored() -> None:
    admission = make(100)
    admission.begin_step(dict, num_waiting=0, num_free_blocks=100)
    admission.step.started(request("a", 8, 50, length_known=False))
    admission.finished("a", 3, learn=False)
    admission.finished("nobody", 3)
    admission.preempted("nobody")
    assert admission.predictor.lengths.num_seen == 0 == admission.counters.num_lengths
    assert admission.num_running == 0


def test_requests_that_outgrow_their_prediction_are_predicted_again() -> None:
    admission = make(1000)
    admission.begin_step(dict, num_waiting=0, num_free_blocks=1000)
    admission.step.started(request("a", 8, 2000, length_known=False, hint=5))
    for made in range(1, 40):
        held = {"a": 8 + made}
        admission.begin_step(lambda held=held: held, num_waiting=0, num_free_blocks=900)
        admission.step.may_start(request("next"))  # predictions matter once somebody wants to start
    assert admission.running.memory.forecast().peak > (8 + 40) // 4, "it still counts as growing"


def test_several_kv_groups_are_read_off_the_pool() -> None:
    """Each block of tokens takes two blocks here, so half as many requests fit."""
    admission = make(40)
    for _ in range(60):
        admission.begin_step(dict, num_waiting=1, num_free_blocks=40)
        admission.step.started(request("a", 8, 400, length_known=False))
        admission.begin_step(lambda: {"a": 8}, num_waiting=1, num_free_blocks=36)
        admission.step.may_start(request("next"))
        admission.finished("a", 1, learn=False)
    assert admission.running.capacity == pytest.approx(20, abs=1)


def test_costs_decide_where_nothing_is_set_and_the_reason_says_so() -> None:
    waiting = [request(str(n), 8, 40) for n in range(60)]
    chosen = {}
    for costs in (COMPUTE_BOUND, STEP_BOUND):
        runner = Runner(make(100, costs), {c.request_id: 40 for c in waiting})
        runner.run(waiting)
        chosen[costs] = runner.admission.limits
    assert chosen[COMPUTE_BOUND].overcommit == MIN_OVERCOMMIT < 1
    assert chosen[STEP_BOUND].overcommit > 1
    assert "a life's steps cost" in chosen[STEP_BOUND].reason
    by_hand = Runner(make(100, overcommit=1.1, pace=0), {c.request_id: 40 for c in waiting})
    by_hand.run(waiting)
    assert by_hand.admission.limits.overcommit == 1.1
    assert "overcommit 1.1 as set" in by_hand.admission.limits.reason


def test_costs_are_measured_with_the_clock_that_is_given() -> None:
    now = [0.0]
    admission = AdmissionController(100, 4, Environment("cpu", lambda: now[0]), costs=COMPUTE_BOUND)
    runner = Runner(admission, {str(n): 50 for n in range(20)})
    waiting = [request(str(n), 8, 50) for n in range(20)]
    while waiting or runner.running:
        runner.step(waiting)
        now[0] += 0.5
    assert admission.tuner.costs != COMPUTE_BOUND
    costs = admission.tuner.costs
    assert costs.step_s + 20 * costs.decode_s + 800 * costs.kv_s > 0.1, "half a second a step"


def test_an_empty_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        AdmissionController(0, 4, UNTIMED, counters=ScheduleCounters())


def test_orders_ask_for_the_expected_output() -> None:
    admission = make(4000)
    unknown = request("u", 8, 2000, length_known=False)
    assert admission.predictor.median_output(unknown) == 2000, "nothing is known yet"
    assert admission.predictor.median_output(request("k", 8, 30)) == 30
    assert admission.predictor.median_output(request("h", 8, 2000, length_known=False, hint=9)) == 9
    Runner(admission, {str(n): 20 for n in range(60)}).run(
        [request(str(n), 8, 2000, length_known=False) for n in range(60)]
    )
    assert admission.predictor.median_output(unknown) == 20
