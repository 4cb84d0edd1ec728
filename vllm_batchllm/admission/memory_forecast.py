# SPDX-License-Identifier: Apache-2.0
"""How many KV blocks the running requests hold, now and until all of them have finished.

Whether a request *fits now* says little: all that run grow with every token, and blocks come
back only when somebody finishes. What counts is the highest point ahead (the Past-Future rule
of LightLLM), in physical blocks, with a block that several requests share counted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from vllm_batchllm.admission.memory_model import MemoryModel
from vllm_batchllm.admission.shared_blocks import (
    Ints,
    Neighbour,
    RunsAhead,
    SharedRuns,
    blocks_held,
    with_room,
)
from vllm_batchllm.prefix.hashing import num_equal

_SERIAL, _TOKENS, _FINAL, _SHARED = range(4)

ENDLESS = 2**60
"""Tokens at the end of a request of which nobody knows when it ends."""

_LOOKS = 16
"""Moments looked at between two ends of requests, where the memory fills up between them."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A request that may be admitted.

    hashes: its chained block hashes; kept by reference while it runs.
    num_tokens: tokens it holds in its first step, without cached blocks taken off.
    num_remaining: steps it runs behind the first one, one token each; None if nobody knows: then it
        counts as it is, now and always.
    """

    hashes: Sequence[Any]
    num_tokens: int
    num_remaining: int | None

    @property
    def final(self) -> int:
        """Tokens that it holds at its end."""
        if self.num_remaining is None:
            return ENDLESS
        return self.num_tokens + self.num_remaining


@dataclass(frozen=True, slots=True)
class Shortage:
    """Memory ends before an entrant does.

    num_steps: it runs for sure until then. lost_ratio: of its own blocks, the share that the others
    will need until there is room for all of it again.
    """

    num_steps: int
    lost_ratio: float


@dataclass(frozen=True, slots=True)
class _Ahead:
    """The running requests as a forecast sees them: columns of the table, and steps to go."""

    tokens: Ints
    shared: Ints
    remaining: Ints
    runs: RunsAhead


class RunningMemory:
    """Blocks held by the running requests, predicted until the last of them has finished.

    Exact if remaining lengths are right, the model is, and a request shares blocks only through its
    neighbours in order of admission; otherwise a shared block may be counted twice, so the
    prediction is never too low for that reason. Of a shared prefix, what a window leaves behind
    counts until its requests end.

    Args:
        model: blocks of a request by its tokens.
        tokens_per_hash: tokens per block hash, if hashes are finer than units of sharing.

    Adding costs O(log blocks) comparisons of hashes, everything else vectorised O(n) or, for
    the forecast, O(n log n).

    Raises:
        ValueError: ``tokens_per_hash`` is below 1.
    """

    def __init__(self, model: MemoryModel, *, tokens_per_hash: int | None = None) -> None:
        if tokens_per_hash is not None and tokens_per_hash < 1:
            raise ValueError(f"tokens_per_hash must be at least 1, got {tokens_per_hash}")
        self._model = model
        self._tokens_per_hash = model.unit if tokens_per_hash is None else tokens_per_hash
        self._hashes: list[Sequence[Any]] = []
        self._ids: list[str] = []
        self._serial_of: dict[str, int] = {}
        self._next_serial = 0
        self._gone: list[int] = []
        self._rows: Ints = np.empty((4, 64), np.int64)
        self._num_rows = self._num_endless = 0
        self._runs = SharedRuns()
        self._final_own = 0

    def __len__(self) -> int:
        return len(self._serial_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._serial_of

    def add(self, request_id: str, entrant: Entrant) -> int:
        """Record an admission; return the number of units it shares with those that run.

        Raises:
            ValueError: ``request_id`` runs already.
        """
        if request_id in self._serial_of:
            raise ValueError(f"request {request_id} runs already")
        shared = self._units_shared_with_last(entrant.hashes)
        serial = self._next_serial
        self._next_serial += 1
        if shared:
            last = self._requests[:, -1]
            neighbour, covered = int(last[_SERIAL]), int(last[_SHARED])
            if self._runs.join(serial, shared, neighbour, covered):
                last[_SHARED] = shared
                final = int(last[_FINAL])
                self._final_own += self._most(final, shared) - self._most(final, covered)
        self._serial_of[request_id] = serial
        self._hashes.append(entrant.hashes)
        self._ids.append(request_id)
        self._rows = with_room(self._rows, self._num_rows)
        final = entrant.final
        self._rows[:, self._num_rows] = (serial, entrant.num_tokens, final, shared)
        self._num_rows += 1
        self._num_endless += final == ENDLESS
        self._final_own += self._most(final, shared)
        return shared

    def remove(self, request_id: str) -> None:
        """Forget a request that finished or was preempted. Raises KeyError if unknown. O(1).

        Its row goes when somebody looks: many end in one step, and go together.
        """
        self._gone.append(self._serial_of.pop(request_id))

    def update(self, num_tokens: Mapping[str, int]) -> list[str]:
        """Set the tokens that requests hold in this step; unknown ones are left out.

        Returns those that have outgrown what was expected; they count as ending with this step.
        """
        rows = self._requests
        get = num_tokens.get
        held = np.array([get(request_id, -1) for request_id in self._ids], np.int64)
        np.copyto(rows[_TOKENS], held, where=held >= 0)
        outgrown = np.flatnonzero(rows[_TOKENS] > rows[_FINAL])
        return [self._ids[position] for position in outgrown]

    def expect_no_end(self, request_id: str) -> None:
        """Nobody knows any more when ``request_id`` ends. Raises KeyError if unknown."""
        row = self._requests[:, self._position(request_id)]
        self._set_final(row, ENDLESS)

    def expect(self, request_id: str, entrant: Entrant) -> None:
        """``request_id`` is what ``entrant`` says now. Raises KeyError if unknown."""
        row = self._requests[:, self._position(request_id)]
        row[_TOKENS] = entrant.num_tokens
        self._set_final(row, entrant.final)

    def _set_final(self, row: Ints, final: int) -> None:
        before, shared = int(row[_FINAL]), int(row[_SHARED])
        row[_FINAL] = final
        self._final_own += self._most(final, shared) - self._most(before, shared)
        self._num_endless += (final == ENDLESS) - (before == ENDLESS)

    def fits_whatever_happens(self, entrant: Entrant, num_blocks: int) -> bool:
        """Whether all would fit at their ends at once: enough, and known without looking ahead.

        Never where somebody's end is not known.
        """
        shared = self._units_shared_with_last(entrant.hashes)
        if self._num_endless or entrant.num_remaining is None:
            return False
        in_runs = self._model.shared_at_most(self._runs.num_units, len(self._runs))
        return self._final_own + self._most(entrant.final, shared) + in_runs <= num_blocks

    def shortage(
        self, entrant: Entrant, num_blocks: int, *, is_certain: bool = True
    ) -> Shortage | None:
        """When, and by how much, memory of ``num_blocks`` ends with ``entrant``; None if it suffices.

        is_certain: it ends when it is expected to; what comes later it can neither cause nor prevent,
        and is not looked at.
        """
        ahead = self._ahead(entrant)
        until = entrant.num_remaining if is_certain else None
        times = self._times(ahead, None if until is None else until + 1)
        held = self._held_at(ahead, times)
        over = np.flatnonzero(held > num_blocks)
        if not len(over):
            return None
        first, excess = int(over[0]), int(held.max()) - num_blocks
        lost = min(excess / max(self._own_at_most(ahead), 1), 1.0)
        if first == 0:
            return Shortage(0, lost)
        between = np.unique(np.linspace(times[first - 1], times[first], _LOOKS).astype(np.int64))
        fits = self._held_at(ahead, between) <= num_blocks
        return Shortage(int(between[np.argmin(fits) - 1]), lost)

    def peak(self, entrant: Entrant | None = None) -> int:
        """Most blocks held until all have ended, with ``entrant`` admitted if there is one."""
        ahead = self._ahead(entrant)
        return int(self._held_at(ahead, self._times(ahead, None)).max(initial=0))

    def held_with(self, entrant: Entrant | None = None) -> int:
        """Blocks held in this step, with ``entrant`` admitted if there is one."""
        return int(self._held_at(self._ahead(entrant), np.zeros(1, np.int64))[0])

    def num_shared_tokens(self, entrant: Entrant) -> int:
        """Tokens of ``entrant`` in blocks that it would share with those that run."""
        return self._units_shared_with_last(entrant.hashes) * self._model.unit

    def num_tokens(self, request_id: str) -> int:
        """Tokens that ``request_id`` holds in this step. Raises KeyError if unknown."""
        return int(self._requests[_TOKENS, self._position(request_id)])

    def check_integrity(self) -> None:
        """Raise AssertionError where a structural promise is broken. O(n)."""
        assert self._requests.shape[1] == len(self._ids) == len(self), "rows and ids disagree"
        self._runs.check_integrity()

    def _ahead(self, entrant: Entrant | None) -> _Ahead:
        """Those that run, with ``entrant`` among them if there is one."""
        requests = self._requests
        tokens, shared = requests[_TOKENS], requests[_SHARED]
        remaining = np.maximum(requests[_FINAL] - tokens, 0)
        runs = self._runs.ahead(requests[_SERIAL], tokens, remaining)
        if entrant is None:
            return _Ahead(tokens, shared, remaining, runs)
        num_shared = self._units_shared_with_last(entrant.hashes)
        steps = entrant.final - entrant.num_tokens
        shared = np.append(shared, num_shared)
        if num_shared:
            last = requests[:, -1]
            neighbour = Neighbour(
                int(last[_SERIAL]), int(last[_SHARED]), int(tokens[-1]), int(remaining[-1])
            )
            runs, shared[-2] = self._runs.ahead_with(
                runs, num_shared, neighbour, entrant.num_tokens, steps
            )
        tokens = np.append(tokens, entrant.num_tokens)
        return _Ahead(tokens, shared, np.append(remaining, steps), runs)

    def _own_at_most(self, ahead: _Ahead) -> int:
        """Own blocks of the last one at its end, or now if that is not known."""
        tokens, remaining = int(ahead.tokens[-1]), int(ahead.remaining[-1])
        final = tokens + remaining if remaining < ENDLESS // 2 else tokens
        return self._model.own_at_most(final, int(ahead.shared[-1]))

    def _times(self, ahead: _Ahead, until: int | None) -> Ints:
        """Steps ahead at which the blocks held may be the most, ascending from now on."""
        ends = ahead.remaining[ahead.remaining < ENDLESS // 2]
        last = int(ends.max(initial=0))
        if until is not None:
            last = min(last, until)
        turns = self._model.last_full_steps(ahead.tokens, last)
        times = np.unique(np.concatenate((ends, turns, (0, last))))
        return times[times <= last]

    def _held_at(self, ahead: _Ahead, times: Ints) -> Ints:
        """Blocks held at each of ``times``, own ones and shared ones."""
        model = self._model
        ends = ahead.remaining < ENDLESS // 2
        sizes = model.shared_blocks(ahead.runs.start, ahead.runs.end, ahead.runs.tokens)
        held = blocks_held(sizes, ahead.runs.ends, times)
        if not ends.all():
            held = held + int(model.own(ahead.tokens[~ends], ahead.shared[~ends]).sum())
        columns = (ahead.tokens[ends], ahead.shared[ends], ahead.remaining[ends])
        return held + model.own_ahead(*columns, times)

    def _units_shared_with_last(self, hashes: Sequence[Any]) -> int:
        self._let_go()
        if not self._hashes:
            return 0
        num_hashes = num_equal(self._hashes[-1], hashes)
        return num_hashes * self._tokens_per_hash // self._model.unit

    def _most(self, final: int, shared: int) -> int:
        """Most own blocks until the end; 0 where that is not known."""
        return 0 if final == ENDLESS else self._model.own_at_most(final, shared)

    def _position(self, request_id: str) -> int:
        return int(np.searchsorted(self._live(_SERIAL), self._serial_of[request_id]))

    def _live(self, column: int) -> Ints:
        live: Ints = self._requests[column]
        return live

    @property
    def _requests(self) -> Ints:
        """The rows of those that run, in order of admission; a view."""
        self._let_go()
        return self._rows[:, : self._num_rows]

    def _let_go(self) -> None:
        """Drop the rows of the removed. O(running), once for all of them."""
        if not self._gone:
            return
        rows = self._rows[:, : self._num_rows]
        stays = np.ones(self._num_rows, bool)
        stays[np.searchsorted(rows[_SERIAL], self._gone)] = False
        leaving = rows[:, ~stays]
        is_planned = leaving[_FINAL] < ENDLESS
        planned = leaving[:, is_planned]
        own = self._model.own_at_most(planned[_FINAL], planned[_SHARED])
        self._final_own -= int(own.sum())
        self._num_endless -= int((~is_planned).sum())
        kept = rows[:, stays]
        self._num_rows = kept.shape[1]
        self._rows[:, : self._num_rows] = kept
        self._hashes = list(compress(self._hashes, stays))
        self._ids = list(compress(self._ids, stays))
        self._gone.clear()
        self._runs.drop_ended(kept[_SERIAL])
