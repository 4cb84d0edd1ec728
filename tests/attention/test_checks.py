# SPDX-License-Identifier: Apache-2.0
"""Block tables that contradict lengths: said by name where checks are on."""

from __future__ import annotations

import pytest
from steps import make_step

from vllm_batchllm.attention.checks import CHECK, check_step, checks_are_on


def test_checks_are_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv(CHECK, raising=False)
    assert not checks_are_on()
    monkeypatch.setenv(CHECK, "1")
    assert checks_are_on()


def test_a_table_that_contradicts_the_lengths_is_named():
    table, seq_lens, _ = make_step([(64, 3)], num_padded=2).tensors()
    check_step(table, seq_lens, 16)
    longer = seq_lens.clone()
    longer[1] = 16 * table.shape[1] + 1
    with pytest.raises(
        ValueError, match=rf"row 1 of this step has {int(longer[1])} tokens and needs"
    ):
        check_step(table, longer, 16)
    holes = table.clone()
    holes[2, 1] = 0
    with pytest.raises(ValueError, match=r"row 2 .* entry 1 of its block table is 0"):
        check_step(holes, seq_lens, 16)
