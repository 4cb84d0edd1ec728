# SPDX-License-Identifier: Apache-2.0
"""What can be compared: an order of the input, a scheduler, and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_batchllm.errors import unknown_name
from vllm_batchllm.ordering.policies import ORDERS
from vllm_batchllm.simulate.orders import ARRANGED
from vllm_batchllm.workloads.batch import Batch

STOCK, SORTED, TUNED, OURS = "stock", "sorted", "tuned", "batchllm"
DEFAULT_ARMS = (STOCK, SORTED, TUNED, OURS)
ONLINE_ARMS = (STOCK, OURS)
"""Where requests arrive over time: nobody can sort what is not there yet."""
WATERMARKS = (0.02, 0.05)
"""Of vLLM's option; `tuned` takes whichever is better for a batch."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to serve a batch.

    scheduler: "stock" (vLLM's), "batchllm" (ours), "lpm" or "dfs-weight" (vLLM's with its waiting
    queue in the order of SGLang's policies of these names, which are re-implemented here).
    is_sorted: requests come sorted by their token ids. arranged: they come in an order of
    `orders.py` instead. options: of our scheduler. raises_seqs: with the `max_num_seqs` that our
    plugin chooses, where the user has not. is_tuned: with the sizes that vLLM chooses for
    `performance_mode=throughput`. watermark: share of the KV blocks that vLLM keeps free as a request starts.
    """

    name: str
    scheduler: str
    is_sorted: bool = False
    arranged: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    raises_seqs: bool = True
    is_tuned: bool = False
    watermark: float = 0.0

    @property
    def is_ours(self) -> bool:
        """Whether our scheduler serves it."""
        return self.scheduler == OURS

    def variants(self) -> list[Arm]:
        """What is run for this arm; the best one counts."""
        return [replace(self, watermark=w) for w in WATERMARKS] if self.is_tuned else [self]

    def input_order(self, batch: Batch) -> list[int]:
        """Places of the prompts of `batch` in the order in which requests come."""
        if self.arranged is not None:
            return ARRANGED[self.arranged](batch)
        order = list(range(batch.num_requests))
        return sorted(order, key=lambda place: batch.prompts[place]) if self.is_sorted else order


SGLANG = ("lpm", "dfs-weight")


def arm_names() -> list[str]:
    """All arms by name."""
    return [*DEFAULT_ARMS, *ORDERS, *ARRANGED, *SGLANG]


def find_arm(name: str, options: Mapping[str, Any] | None = None) -> Arm:
    """The arm of that name.

    options: for our scheduler; a name that is an order wins over an order among them.

    Raises:
        UsageError: unknown; the known ones are listed.
    """
    ours = dict(options or {})
    if name == STOCK:
        return Arm(name, STOCK)
    if name == SORTED:
        return Arm(name, STOCK, is_sorted=True)
    if name == TUNED:
        return Arm(name, STOCK, is_sorted=True, is_tuned=True)
    if name == OURS:
        return Arm(name, OURS, options=ours)
    if name in ORDERS:
        return Arm(name, OURS, options=ours | {"order": name})
    if name in ARRANGED:
        return Arm(name, OURS, arranged=name, options=ours)
    if name in SGLANG:
        return Arm(name, name)
    raise unknown_name("policy", name, arm_names())
