# SPDX-License-Identifier: Apache-2.0
"""What the simulator says that decodes share, against the block tables of the real scheduler in every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_simulated_runs import COSTS, SIZES

from vllm_batchllm.attention.grouping import (
    GroupingRule,
    leading_equal_blocks,
    shared_intervals,
)
from vllm_batchllm.simulate.arms import find_arm
from vllm_batchllm.simulate.run import run_arm
from vllm_batchllm.simulate.shared_kv import SharedKVMeter, SharedWork
from vllm_batchllm.workloads.catalog import make_workload

RULE = GroupingRule(cost_tokens=8, min_tokens=16)


class CheckedMeter(SharedKVMeter):
    """Compares with whole block tables in every step."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler, (RULE,))
        self.scheduler, self.saved = scheduler, 0

    def work_of(self, rows: Any, computed: Any) -> SharedWork:
        found = super().work_of(rows, computed)
        tables = [self.scheduler.kv_cache_manager.get_block_ids(name)[0] for name in rows]
        readable = np.array([(computed[name] - 1) // 16 for name in rows], dtype=np.int64)
        table = np.zeros((len(rows), max(map(len, tables), default=0)), dtype=np.int64)
        for row, ids in enumerate(tables):
            table[row, : len(ids)] = ids
        shared = shared_intervals(leading_equal_blocks(table, readable), 16, RULE)
        lens = np.array([computed[name] for name in rows], dtype=np.int64)
        assert found.tokens_saved == int(lens.sum()) - shared.kv_tokens_read(lens, 16)
        assert found.partial_rows == shared.num_partial_rows
        self.saved += found.tokens_saved
        return found


@pytest.mark.parametrize("arm", ["stock", "batchllm"])
@pytest.mark.parametrize("workload", ["tree-3", "decode-heavy", "no-sharing"])
def test_each_step_shares_what_its_block_tables_say(workload: str, arm: str) -> None:
    batch = make_workload(workload, scale=32, num_requests=40)
    meters: list[CheckedMeter] = []

    def make(scheduler: Any) -> CheckedMeter:
        meters.append(CheckedMeter(scheduler))
        return meters[0]

    run_arm(batch, find_arm(arm), SIZES, COSTS, 0, sharing=make)
    assert (meters[0].saved > 0) is (workload != "no-sharing")
    assert not meters[0]._blocks and not meters[0]._equal  # nothing is kept of those that ended
