# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph does: launches recorded once, on dummy inputs, and run again on the same buffers, refilled."""

from __future__ import annotations

import numpy as np
import torch
from layers import CPU, RULE, TWO_KINDS, LayerInputs, flash_stand_in
from steps import Step, make_step

from vllm_batchllm.attention.launch import attend_shared, merge_into
from vllm_batchllm.attention.plan import PartialBuffers, SharedKVPlan, partial_capacity
from vllm_batchllm.attention.reference import dense_attention
from vllm_batchllm.attention.shape import AttentionShape

ROWS, WIDTH, BLOCKS, HEAD = 16, 24, 400, 64
STEPS = (
    [(128, 5), (192, 3)],
    [(32, 1)] * 4,
    [(128, [(64, 3), (96, 4)]), (64, 2)],
    [(256, 15)],
    [(128, 2)],
    [(16, 3)],
)


class Captured:
    """Persistent inputs, and what was launched on them."""

    def __init__(self) -> None:
        self.table = torch.zeros(ROWS, WIDTH, dtype=torch.int32)
        self.lens = torch.zeros(ROWS, dtype=torch.int32)
        self.query_start = torch.zeros(ROWS + 1, dtype=torch.int32)
        self.q, self.out = torch.zeros(ROWS, 8, HEAD), torch.zeros(ROWS, 8, HEAD)
        random = torch.Generator().manual_seed(0)
        kv = torch.randn(BLOCKS, 2, 16, 2 * HEAD, generator=random).transpose(1, 2)
        self.keys, self.values = kv.split(HEAD, dim=-1)
        shape = AttentionShape(8, 2, HEAD, 16, max_rows=ROWS, max_blocks=WIDTH)
        partials = PartialBuffers.reserve(shape, partial_capacity(shape, RULE), CPU)
        self.plan = SharedKVPlan(shape, RULE, TWO_KINDS, partials)
        self.lse = torch.zeros(8, ROWS)
        layer = LayerInputs(
            self.q, self.keys, self.values, self.table, self.query_start, HEAD**-0.5
        )
        self.launches = (
            lambda: self._flash(layer),
            lambda: attend_shared(self.plan, layer),
            lambda: merge_into(self.plan, self.query_start, self.out, self.lse),
        )

    def _flash(self, layer: LayerInputs) -> None:
        out, lse = flash_stand_in(layer, self.plan.own_table, self.plan.own_lens, torch.float32)
        self.out.copy_(out)
        self.lse.copy_(lse)

    def refill(self, step: Step, seed: int) -> None:
        """Inputs of another step, where those of the last one were; rows behind are padding."""
        table, lens, query_start = step.tensors()
        rows = len(lens)
        self.table.zero_()
        self.table[:rows, : table.shape[1]] = table
        self.lens.zero_()
        self.lens[:rows] = lens
        self.query_start.fill_(rows)
        self.query_start[: rows + 1] = query_start
        self.q.copy_(torch.randn(self.q.shape, generator=torch.Generator().manual_seed(seed)))
        self.plan.build(self.table, self.lens, self.query_start)

    def replay(self) -> None:
        for launch in self.launches:
            launch()


def test_one_capture_serves_every_later_step():
    captured = Captured()
    captured.plan.build(captured.table, captured.lens, captured.query_start)
    captured.replay()  # the capture, on dummies
    for seed, groups in enumerate(STEPS):
        step = make_step(groups, seed=seed)
        assert step.num_blocks <= BLOCKS and step.block_table.shape[1] <= WIDTH
        captured.refill(step, seed)
        captured.replay()
        rows = len(step.seq_lens)
        expected = dense_attention(
            captured.q[:rows].double(), captured.keys.transpose(1, 2).double(), captured.values.transpose(1, 2).double(),
            captured.table, step.seq_lens.tolist(), np.arange(rows + 1).tolist(), HEAD**-0.5,
        )  # fmt: skip
        assert float((captured.out[:rows].double() - expected).abs().max()) <= 2e-6
        assert (captured.plan.node_of_row[rows:] == -1).all()
