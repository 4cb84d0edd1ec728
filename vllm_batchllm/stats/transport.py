# SPDX-License-Identifier: Apache-2.0
"""Both ends of the counters' ride on vLLM's step statistics, from engine core to front end.

Only vLLM's own ``SchedulerStats`` crosses that border after a step, and fields it does not know
are dropped on the way. One of its fields is a map from names to whole numbers, filled afresh at
every step: changes of our counters travel there under prefixed names, and are taken out again
before anything of vLLM's reads the map.

Changes, not totals, because vLLM hands each step's statistics to just one of several API
processes: sums over these are then right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from vllm_batchllm.log import get_logger
from vllm_batchllm.stats.counters import GAUGES, ScheduleCounters

logger = get_logger(__name__)

CARRIER = "num_kv_fetch_reqs_by_stage"
"""The field of vLLM's SchedulerStats that carries our figures."""
PREFIX = "vllm_batchllm:"
OCCUPANCY = "kv_occupancy"
"""Share of the KV blocks held by requests, over the steps since the last change was sent."""
OTHER_HITS = "hit_tokens_other"
"""Hit tokens at admission that no level of the prefix tree accounts for."""

PERIOD_S = 0.1
"""Seconds between two sendings while the engine is busy; nobody reads them more often."""

_MICRO = 1_000_000  # the map holds whole numbers only
_FRACTIONAL = {OCCUPANCY} | {
    item.name for item in fields(ScheduleCounters) if item.type in ("float", float)
}
_GAUGES = {*GAUGES, OCCUPANCY}


class CounterTransport:
    """The engine core's end: knows what was sent, and adds what has changed since.

    Counters are sent as increases and never fall: where a figure was taken back, the next
    increases are held until it passes its highest value. Gauges are sent as they are.
    A failure switches the transport off, with one warning; it never reaches the engine.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._sent: dict[str, int] = {}
        self._is_off = False
        self._clock = clock
        self._due_s = 0.0

    def attach(
        self, stats: Any, snapshot: Callable[[], Mapping[str, Any]], *, can_wait: bool = False
    ) -> None:
        """Put the changes since the last call on ``stats``; None (statistics are off) is left.

        snapshot: gives the counters as :meth:`ScheduleCounters.to_dict` does; not called when
            there is nothing to put them on.
        can_wait: more steps will come, so do nothing if the last sending was just now.
        """
        if stats is None or self._is_off or (can_wait and self._clock() < self._due_s):
            return
        self._due_s = self._clock() + PERIOD_S
        try:
            changes = self.changes(snapshot())
            getattr(stats, CARRIER).update((PREFIX + name, n) for name, n in changes.items())
        except Exception:
            self._is_off = True
            logger.warning("batchllm metrics stop: the counters cannot be sent", exc_info=True)

    def changes(self, snapshot: Mapping[str, Any]) -> dict[str, int]:
        """What is new in ``snapshot``, by figure; fractions in millionths."""
        now = _flat(snapshot)
        changed: dict[str, int] = {}
        for name, value in now.items():
            before = self._sent.get(name)
            is_gauge = name in _GAUGES
            if value == before if is_gauge else value <= (before or 0):
                continue
            changed[name] = value if is_gauge else value - (before or 0)
            self._sent[name] = value
        changed |= self._occupancy(changed, now)
        return changed

    def _occupancy(self, changed: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
        """The share of blocks held in the steps that ``changed`` covers, if there were any."""
        blocks, steps = now["kv_blocks"], changed.get("num_memory_steps", 0)
        if not (blocks and steps):
            return {}
        share = round(changed.get("held_blocks", 0) / steps / blocks * _MICRO)
        before, self._sent[OCCUPANCY] = self._sent.get(OCCUPANCY), share
        return {} if share == before else {OCCUPANCY: share}


def detach(stats: Any) -> dict[str, float]:
    """The front end's end: take our figures off ``stats``, whose map is then as vLLM made it.

    Counters are increases since the last step, gauges values; seconds and shares are fractions.
    """
    carrier = getattr(stats, CARRIER)
    ours = [key for key in carrier if key.startswith(PREFIX)]
    figures: dict[str, float] = {}
    for key in ours:
        name, value = key.removeprefix(PREFIX), carrier.pop(key)
        figures[name] = value / _MICRO if name in _FRACTIONAL else value
    return figures


def level_figure(index: int) -> str:
    """Name of the figure of one entry of ``hit_tokens_by_level``."""
    return f"hit_tokens_by_level.{index}"


def _flat(snapshot: Mapping[str, Any]) -> dict[str, int]:
    flat: dict[str, int] = {}
    for name, value in snapshot.items():
        if isinstance(value, list):
            flat |= {f"{name}.{index}": int(each) for index, each in enumerate(value)}
        elif not isinstance(value, str):  # words stay behind
            flat[name] = round(value * _MICRO) if name in _FRACTIONAL else int(value)
    levels = sum(snapshot["hit_tokens_by_level"])
    flat[OTHER_HITS] = max(int(snapshot["admission_hit_tokens"]) - levels, 0)
    return flat
