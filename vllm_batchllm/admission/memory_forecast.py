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

from vllm_batchllm.admission.shared_blocks import Ints, SharedRuns, blocks_held, with_room
from vllm_batchllm.prefix.hashing import num_equal

_SERIAL, _TOKENS, _FINAL, _SHARED, _FIRST, _SINCE = range(6)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A request that may be admitted.

    hashes: its chained block hashes; kept by reference while it runs.
    num_tokens: tokens it holds in its first step, without cached blocks taken off.
    num_remaining: steps it runs behind the first one, one token each.
    """

    hashes: Sequence[Any]
    num_tokens: int
    num_remaining: int


@dataclass(frozen=True, slots=True)
class MemoryForecast:
    """Physical blocks held by the running requests.

    held: in this step. near, peak: at the highest point in so many steps ahead.
    """

    held: int
    near: int
    peak: int


class RunningMemory:
    """Blocks held by the running requests, predicted until the last of them has finished.

    Exact if remaining lengths are right and a request shares blocks only through its
    neighbours in order of admission; otherwise a shared block may be counted twice, so the
    prediction is never too low for that reason.

    Args:
        block_size: tokens per block.
        tokens_per_hash: tokens per block hash, if hashes are finer than blocks.

    Adding costs O(log blocks) comparisons of hashes, everything else vectorised O(n) or, for
    the forecast, O(n log n + n * block_size).

    Raises:
        ValueError: a figure below 1.
    """

    def __init__(self, block_size: int, *, tokens_per_hash: int | None = None) -> None:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1 token, got {block_size}")
        if tokens_per_hash is not None and tokens_per_hash < 1:
            raise ValueError(f"tokens_per_hash must be at least 1, got {tokens_per_hash}")
        self._block_size = block_size
        self._tokens_per_hash = block_size if tokens_per_hash is None else tokens_per_hash
        self._hashes: list[Sequence[Any]] = []
        self._ids: list[str] = []
        self._serial_of: dict[str, int] = {}
        self._next_serial = 0
        self._gone: list[int] = []
        self._rows: Ints = np.empty((6, 64), np.int64)
        self._num_rows = 0
        self._runs = SharedRuns()
        self._final_own = self._tokens_at_step_0 = self._now = 0

    def __len__(self) -> int:
        return len(self._serial_of)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._serial_of

    def add(self, request_id: str, entrant: Entrant) -> int:
        """Record an admission; return the number of blocks it shares with those that run.

        Raises:
            ValueError: ``request_id`` runs already.
        """
        if request_id in self._serial_of:
            raise ValueError(f"request {request_id} runs already")
        shared = self._blocks_shared_with_last(entrant.hashes)
        serial = self._next_serial
        self._next_serial += 1
        if shared:
            last = self._requests[:, -1]
            neighbour, covered = int(last[_SERIAL]), int(last[_SHARED])
            if self._runs.join(serial, shared, neighbour, covered):
                last[_SHARED] = shared
                self._final_own -= shared - covered
        self._serial_of[request_id] = serial
        self._hashes.append(entrant.hashes)
        self._ids.append(request_id)
        final = entrant.num_tokens + entrant.num_remaining
        self._rows = with_room(self._rows, self._num_rows)
        tokens = entrant.num_tokens
        self._rows[:, self._num_rows] = (serial, tokens, final, shared, tokens, self._now)
        self._num_rows += 1
        self._final_own += self._blocks(final) - shared
        self._tokens_at_step_0 += tokens - self._now
        return shared

    def step(self) -> None:
        """A step begins, with one token more in every request. O(1)."""
        self._now += 1

    def remove(self, request_id: str) -> None:
        """Forget a request that finished or was preempted. Raises KeyError if unknown. O(1).

        Its row goes when somebody looks: many end in one step, and go together.
        """
        self._gone.append(self._serial_of.pop(request_id))

    def update(self, num_tokens: Mapping[str, int]) -> list[str]:
        """Set the tokens that requests hold in this step; unknown ones are left out.

        Returns those that have outgrown their prediction; they count as ending with this step
        until :meth:`expect` knows better.
        """
        rows = self._requests
        get = num_tokens.get
        held = np.array([get(request_id, -1) for request_id in self._ids], np.int64)
        is_known = held >= 0
        np.copyto(rows[_TOKENS], held, where=is_known)
        np.copyto(rows[_SINCE], self._now, where=is_known)
        self._tokens_at_step_0 = int(rows[_TOKENS].sum() - rows[_SINCE].sum())
        outgrown = np.flatnonzero(rows[_TOKENS] > rows[_FINAL])
        return [self._ids[position] for position in outgrown]

    def expect(self, request_id: str, num_remaining: int) -> None:
        """Predict anew that ``request_id`` runs for ``num_remaining`` steps behind this one."""
        at = self._position(request_id)
        row = self._requests[:, at]
        before, after = int(row[_FINAL]), int(row[_TOKENS]) + num_remaining
        row[_FINAL] = after
        self._final_own += self._blocks(after) - self._blocks(before)

    def fits_whatever_happens(self, entrant: Entrant, num_blocks: int) -> bool:
        """Whether all would fit at their ends at once: enough, and known without looking ahead.

        Requests that have outgrown their prediction count by it until :meth:`expect`.
        """
        shared = self._blocks_shared_with_last(entrant.hashes)
        own = self._blocks(entrant.num_tokens + entrant.num_remaining) - shared
        return self._final_own + own + self._runs.num_blocks <= num_blocks

    def forecast(
        self, entrant: Entrant | None = None, *, near: int = 0, until: int | None = None
    ) -> MemoryForecast:
        """Blocks held now and ahead, with ``entrant`` admitted if there is one.

        ``near`` and ``until``: steps that count for the two high points; None: all of them,
        until the last request has finished.
        """
        requests = self._requests
        remaining = np.maximum(requests[_FINAL] - requests[_TOKENS], 0)
        sizes, ends = self._runs.sizes_and_ends(requests[_SERIAL], remaining)
        if entrant is not None:
            requests, sizes, ends = self._with(entrant, requests, remaining, sizes, ends)
            remaining = np.append(remaining, entrant.num_remaining)
        if not len(remaining):
            return MemoryForecast(0, 0, 0)
        order = np.argsort(-remaining)
        ending = remaining[order]
        longest = int(ending[0])
        last = longest if until is None else min(max(until, near), longest)
        times = np.append(ending[ending <= last], (last, min(near, longest), 0))
        num_alive = np.searchsorted(-ending, -times, side="right")
        held = self._private_blocks(
            requests[_TOKENS, order], requests[_SHARED, order], times, num_alive
        )
        held += blocks_held(sizes, ends, times)
        return MemoryForecast(int(held[-1]), int(held[times <= near].max()), int(held.max()))

    @property
    def held(self) -> int:
        """Blocks held in this step, as far as is known."""
        own = -(-self._live(_TOKENS) // self._block_size) - self._live(_SHARED)
        return int(own.sum()) + self._runs.num_blocks

    @property
    def tokens(self) -> int:
        """Tokens of all running requests, shared ones counted as often as they are shared.

        Exact if each has grown by a token a step since the last :meth:`update` or its start. O(1)
        while nobody leaves.
        """
        self._let_go()
        return self._tokens_at_step_0 + self._num_rows * self._now

    @property
    def mean_age(self) -> float:
        """Steps that they have run, each weighted by its tokens; 0.0 if nothing runs. O(n)."""
        tokens = self._live(_TOKENS)
        total = int(tokens.sum())
        return float((tokens - self._live(_FIRST)) @ tokens) / total if total else 0.0

    def num_tokens(self, request_id: str) -> int:
        """Tokens that ``request_id`` holds in this step. Raises KeyError if unknown."""
        return int(self._requests[_TOKENS, self._position(request_id)])

    def _private_blocks(self, tokens: Ints, shared: Ints, times: Ints, num_alive: Ints) -> Ints:
        """Blocks behind the shared ones, at each of ``times``, of the first ``num_alive``.

        A request with ``n = a * size + b + 1`` tokens holds ``a + 1 + (b + t) // size`` blocks
        ``t`` steps later, which is ``a + 1 + t // size``, and one more if ``b + t % size``
        reaches the size. How many do is read from cumulative counts by ``b``.
        """
        size = self._block_size
        whole, rest = (tokens - 1) // size, (tokens - 1) % size
        reaching = np.zeros((len(tokens), size + 1), np.int32)
        reaching[np.arange(len(tokens)), size - rest] = 1
        np.cumsum(reaching, axis=1, out=reaching)
        np.cumsum(reaching, axis=0, out=reaching)
        base = np.cumsum(whole + 1 - shared)
        last = num_alive - 1
        held: Ints = base[last] + num_alive * (times // size) + reaching[last, times % size]
        return held

    def _with(
        self, entrant: Entrant, requests: Ints, remaining: Ints, sizes: Ints, ends: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """Requests, and sizes and ends of runs, as they would be with ``entrant`` admitted."""
        shared = self._blocks_shared_with_last(entrant.hashes)
        row = (-1, entrant.num_tokens, -1, shared, entrant.num_tokens, self._now)
        requests = np.column_stack((requests, row))
        if shared:
            serial, covered = map(int, requests[[_SERIAL, _SHARED], -2])
            neighbour = (serial, covered, int(remaining[-1]))
            sizes, ends, requests[_SHARED, -2] = self._runs.with_entrant(
                sizes, ends, shared, neighbour, entrant.num_remaining
            )
        return requests, sizes, ends

    def _blocks_shared_with_last(self, hashes: Sequence[Any]) -> int:
        self._let_go()
        if not self._hashes:
            return 0
        num_hashes = num_equal(self._hashes[-1], hashes)
        return num_hashes * self._tokens_per_hash // self._block_size

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

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
        own = -(-leaving[_FINAL] // self._block_size) - leaving[_SHARED]
        self._final_own -= int(own.sum())
        self._tokens_at_step_0 -= int(leaving[_TOKENS].sum() - leaving[_SINCE].sum())
        kept = rows[:, stays]
        self._num_rows = kept.shape[1]
        self._rows[:, : self._num_rows] = kept
        self._hashes = list(compress(self._hashes, stays))
        self._ids = list(compress(self._ids, stays))
        self._gone.clear()
        self._runs.drop_ended(kept[_SERIAL])
