# SPDX-License-Identifier: Apache-2.0
"""The table of policies is made of real runs whose counters agree with each other."""

from __future__ import annotations

import pytest
from policies import POLICIES, _table
from ring import run, workload

from vllm_batchllm.prefix.best_saving import optimal_saved_tokens


def test_every_policy_serves_the_batch_and_none_saves_more_than_is_possible() -> None:
    batch = workload("tree-3", 16.0, 96)
    row = {policy: run(batch, options) for policy, options in POLICIES.items()}
    possible = optimal_saved_tokens(batch.prompts, 32) / sum(map(len, batch.prompts))
    for policy, outcome in row.items():
        assert 0 <= outcome.saved_ratio <= possible + 1e-9, policy
        assert outcome.modelled_s > outcome.steps * 1e-3
    for policy in ("dfs", "decode-ratio", "short-first"):
        assert row[policy].saved_ratio == pytest.approx(possible), policy
    table = _table({"tree-3": row})
    assert table.count("\n") == 2 + len(POLICIES)
    assert "| tree-3 | sorted |" in table and "| 1.000 |" in table


def test_lengths_that_nobody_knows_end_where_the_workload_says() -> None:
    batch = workload("skewed-output", 8.0, 40)
    outcome = run(batch, {})
    assert outcome.steps >= max(batch.output_lens)
