# SPDX-License-Identifier: Apache-2.0
"""How much the fuzz tests do, from which seed, and what they have done.

In `make test` little, always the same; in `make fuzz` FUZZ_STEPS steps from the seed FUZZ_SEED.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

CI_STEPS = 10_000
EXAMPLES_PER_RUN = 10


class Budget:
    """Steps to be done and steps done, by kind; each was followed by a check of everything.

    num_violations: tests that a broken promise has ended.
    """

    def __init__(self) -> None:
        self.num_steps = int(os.environ.get("FUZZ_STEPS", CI_STEPS))
        self.seed = int(os.environ.get("FUZZ_SEED", "0"))
        self.done: Counter[str] = Counter()
        self.num_violations = 0

    def count(self, kind: str, number: int = 1) -> None:
        self.done[kind] += number

    def summary(self) -> str:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.done.most_common())
        return (
            f"{self.done.total():,} steps ({kinds}), {self.num_violations} violations\n"
            f"replay: make fuzz FUZZ_SEED={self.seed} FUZZ_STEPS={self.num_steps}"
        )


def run_steps(machine: Callable[[], RuleBasedStateMachine], budget: Budget, share: float) -> None:
    """Run ``machine`` for its ``share`` of the budget, from seeds that follow from the budget's."""
    profile = settings(
        max_examples=EXAMPLES_PER_RUN,
        stateful_step_count=40,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    last = budget.done.total() + budget.num_steps * share
    number = 1000 * budget.seed
    while budget.done.total() < last:
        try:
            run_state_machine_as_test(seed(number)(lambda: machine()), settings=profile)
        except Exception:
            budget.num_violations += 1
            raise
        number += 1
