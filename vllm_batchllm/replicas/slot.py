# SPDX-License-Identifier: Apache-2.0
"""What a driver of replicas is given, and what it keeps of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vllm_batchllm.replicas.cut import Floats
from vllm_batchllm.replicas.replica import Capacity, Given, Replica


class Work(Protocol):
    """A batch, as far as the driver asks for it."""

    async def load(self, items: Sequence[int], capacity: Capacity) -> list[Given]:
        """What is sent for these items to such a replica; those left out have been answered meanwhile."""

    async def answered(self, item: int, answer: Any) -> None:
        """An answer has come; the first of an item counts."""

    async def give_up(self, item: int) -> None:
        """The item has killed engines, and is answered with an error."""

    def work_now(self) -> Floats | None:
        """Work of all items by what was learnt of their lengths; None for what it was before."""


@dataclass(frozen=True, slots=True)
class DriveLimits:
    """start_s: a replica has so long to start. stall_s: one that makes no step for so long while it has items hangs.

    grace_s: for what runs, once the batch is stopped. max_restarts: of all replicas together.
    """

    start_s: float = 1800.0
    stall_s: float = 300.0
    grace_s: float = 30.0
    max_restarts: int = 20


@dataclass(slots=True)
class Slot:
    """One replica's place in a batch, whatever becomes of its engines.

    in_flight: items that it has now. on_trial: they are tried alone. done_work: of items answered, since ``since``, which leaves out when it had nothing to do.
    figures: totals of its engines so far. ask_at: while it is busy, it asks for more from then on.
    """

    replica: Replica
    in_flight: dict[int, None] = field(default_factory=dict)
    on_trial: bool = False
    capacity: Capacity = field(default_factory=lambda: Capacity(1))
    num_running: int = 0
    done_work: float = 0.0
    since: float = 0.0
    num_answered: int = 0
    fruitless: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    earlier: dict[str, float] = field(default_factory=dict)
    is_up: bool = False
    ask_at: float = 0.0

    def note_figures(self, figures: Mapping[str, float]) -> None:
        """Totals of the engine that runs now."""
        self.figures = {
            name: self.earlier.get(name, 0.0) + value for name, value in figures.items()
        }
