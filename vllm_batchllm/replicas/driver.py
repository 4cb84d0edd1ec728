# SPDX-License-Identifier: Apache-2.0
"""Many replicas, one batch: each is kept supplied, and whatever dies or hangs is started again while the others go on.

Nothing here knows what an item is, nor where a replica runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from vllm_batchllm.log import get_logger
from vllm_batchllm.replicas.assignment import Assignment, waiting_limit
from vllm_batchllm.replicas.cut import Floats
from vllm_batchllm.replicas.deaths import Deaths
from vllm_batchllm.replicas.errors import NoReplicaLeftError
from vllm_batchllm.replicas.replica import NoPlaceError, Replica, ReplicaGoneError, Taken
from vllm_batchllm.replicas.slot import DriveLimits, Slot, Work

logger = get_logger(__name__)

_MOST_FRUITLESS = 3
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_MOST_ITEMS = 256
"""Of one piece that is handed over."""
_LEAST_MEASURED_S = 5.0
_FIRST_LEARNT = 64
_LOOK_EVERY_S = 0.5
_ASK_AGAIN_S = 0.25
_GUESSED = 0.5
"""How far work is trusted while nobody has seen an output; see `Assignment.certainty`."""


class Driver:
    """Drives a batch over replicas; use `run` once.

    Attributes:
        slots: one for each replica. num_restarts: of engines so far.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        assignment: Assignment,
        work: Work,
        limits: DriveLimits,
        costs: Floats,
    ) -> None:
        self.slots = [Slot(replica) for replica in replicas]
        self.num_restarts = 0
        self._assignment, self._work, self._limits = assignment, work, limits
        self._costs = costs
        self._deaths = Deaths()
        self._changed = asyncio.Event()
        self._deadline: float | None = None
        self._num_answered = 0
        self._learn_at = _FIRST_LEARNT
        self._last_reason = ""
        self._was_ever_up = False
        assignment.certainty = _GUESSED
        for replica in replicas:
            assignment.set_absent(replica.name)

    async def run(self, stop: asyncio.Event) -> bool:
        """Until every item is answered (True), or ``stop`` is set and what ran had its grace (False).

        Raises:
            NoReplicaLeftError: all replicas are gone for good.
        """
        lives = [asyncio.create_task(self._life(slot)) for slot in self.slots]
        watching = asyncio.create_task(self._watch(stop))
        try:
            while lives and not self._over():
                ended, _ = await asyncio.wait(
                    lives, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_EXCEPTION
                )
                for life in ended:
                    life.result()
                if len(ended) == len(lives):
                    break
        finally:
            watching.cancel()
            for life in lives:
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)
        if self._is_done:
            return True
        if self._deadline is not None:
            return False
        raise NoReplicaLeftError(f"no replica is left; the last one: {self._last_reason}")

    def figures(self) -> dict[str, float]:
        """Totals of all engines that there were."""
        total: dict[str, float] = {}
        for slot in self.slots:
            for name, value in slot.figures.items():
                total[name] = total.get(name, 0.0) + value
        return total

    @property
    def num_in_flight(self) -> int:
        """Items that are with replicas now."""
        return sum(len(slot.in_flight) for slot in self.slots)

    @property
    def _is_done(self) -> bool:
        return not (self._assignment.num_left or self.num_in_flight or self._deaths.num_suspected)

    def _over(self) -> bool:
        if self._deadline is not None and not self.num_in_flight:
            return True
        return self._is_done or (self._deadline is not None and time.monotonic() > self._deadline)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._deadline = time.monotonic() + self._limits.grace_s
        self._pulse()

    # One replica.

    async def _life(self, slot: Slot) -> None:
        """Engines of one slot, one after the other."""
        try:
            while not self._over() and self._deadline is None:
                try:
                    await self._start(slot)
                    await self._serve(slot)
                    return
                except ReplicaGoneError as error:
                    self._last_reason = f"{slot.replica.name}: {error}"
                    if not await self._gone(slot, error):
                        return
        finally:
            slot.is_up = False
            self._lose(slot)
            await slot.replica.release()
            self._pulse()

    async def _start(self, slot: Slot) -> None:
        try:
            async with asyncio.timeout(self._limits.start_s):
                slot.capacity = await slot.replica.start()
        except TimeoutError:
            raise ReplicaGoneError(f"it was not ready after {self._limits.start_s:.0f} s") from None
        slot.since, slot.done_work, slot.num_running = time.monotonic(), 0.0, 0
        slot.num_answered = 0
        slot.is_up = self._was_ever_up = True
        self._assignment.set_present(slot.replica.name)
        self._assignment.set_backlog(slot.replica.name, 0.0, time.monotonic())

    async def _serve(self, slot: Slot) -> None:
        """Keep the slot supplied until there is nothing for it any more."""
        life, moved_at = 0, time.monotonic()
        while not self._over():
            self._changed.clear()
            await self._feed(slot)
            if not slot.in_flight:
                if self._over() or self._deadline is not None:
                    return
                idle_since = time.monotonic()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)
                moved_at = time.monotonic()
                slot.since += moved_at - idle_since
                continue
            taken = await slot.replica.take()
            await self._book(slot, taken)
            if taken.life != life or taken.answers:
                life, moved_at = taken.life, time.monotonic()
            elif time.monotonic() - moved_at > self._limits.stall_s:
                raise ReplicaGoneError(
                    f"it has made no step for {self._limits.stall_s:.0f} s (--stall-s)"
                )

    async def _feed(self, slot: Slot) -> None:
        """Hand over items as long as there is room; those under trial alone."""
        while self._deadline is None and not slot.on_trial:
            trial = [] if slot.in_flight else self._deaths.next_trial()
            slot.on_trial = bool(trial)
            items = trial or self._next_items(slot)
            if not items:
                return
            await self._hand_over(slot, items)
            self._end_trial(slot)

    async def _hand_over(self, slot: Slot, items: Sequence[int]) -> None:
        slot.in_flight.update(dict.fromkeys(items))
        given = await self._work.load(items, slot.capacity)
        for item in set(items) - {number for number, _ in given}:
            slot.in_flight.pop(item, None)
        if given:
            await slot.replica.give(given)

    def _next_items(self, slot: Slot) -> list[int]:
        """What the slot gets now. Asking costs O(replicas), so one that is busy asks for several at once, and after a refusal
        not at every turn."""
        now_s = time.monotonic()
        if slot.in_flight and now_s < slot.ask_at:
            return []
        num_up = sum(each.is_up for each in self.slots)
        capacity = slot.capacity
        waiting = waiting_limit(
            self._assignment.num_left, num_up, capacity.least_waiting, capacity.most_in_flight
        )
        limit = min(slot.num_running + waiting, capacity.most_in_flight)
        room = limit - len(slot.in_flight)
        if slot.in_flight and room < max(1, capacity.least_waiting // 2):
            return []
        items = self._assignment.take(slot.replica.name, min(room, _MOST_ITEMS), now_s)
        slot.ask_at = now_s if items else now_s + _ASK_AGAIN_S
        return items

    def _end_trial(self, slot: Slot) -> None:
        """All items under trial are answered: none of them was it."""
        if slot.on_trial and not slot.in_flight:
            self._deaths.survived()
            slot.on_trial = False

    async def _book(self, slot: Slot, taken: Taken) -> None:
        slot.num_running = taken.num_running
        slot.note_figures(taken.figures)
        for item, answer in taken.answers:
            if item in slot.in_flight:
                await self._work.answered(item, answer)
                del slot.in_flight[item]
                slot.done_work += float(self._costs[item])
                slot.num_answered += 1
                self._num_answered += 1
        self._end_trial(slot)
        backlog = float(self._costs[list(slot.in_flight)].sum())
        self._assignment.set_backlog(slot.replica.name, backlog, time.monotonic())
        if taken.answers:
            self._learn(slot)
            if not slot.in_flight:
                self._pulse()

    def _learn(self, slot: Slot) -> None:
        """How fast the slot is, and from time to time how long outputs are."""
        elapsed_s = time.monotonic() - slot.since
        if elapsed_s >= _LEAST_MEASURED_S:
            self._assignment.set_speed(slot.replica.name, slot.done_work / elapsed_s)
        if self._num_answered >= self._learn_at:
            self._learn_at = 2 * self._num_answered
            costs = self._work.work_now()
            if costs is not None:
                self._costs = costs
                self._assignment.reweigh(costs)
                self._assignment.certainty = 1.0

    # What becomes of a replica that is gone.

    def _lose(self, slot: Slot) -> int | None:
        """Its items go back to all, or are suspected; returns one that is found guilty."""
        in_flight, slot.in_flight = list(slot.in_flight), {}
        guilty: int | None = None
        if slot.on_trial:
            slot.on_trial = False
            guilty, back = self._deaths.died_on_trial(in_flight)
        else:
            back = self._deaths.died(in_flight)
        self._assignment.put_back(back)
        return guilty

    async def _gone(self, slot: Slot, error: ReplicaGoneError) -> bool:
        """Clean up, and say whether the slot goes on with another engine."""
        slot.is_up = False
        slot.earlier = dict(slot.figures)
        slot.fruitless = 0 if slot.num_answered else slot.fruitless + 1
        num_lost = len(slot.in_flight)
        guilty = self._lose(slot)
        self._assignment.leave(slot.replica.name)
        self._assignment.set_absent(slot.replica.name)
        await slot.replica.end()
        if guilty is not None:
            logger.error("%s was killed by item %d, which is given up", slot.replica.name, guilty)
            await self._work.give_up(guilty)
            slot.fruitless = 0
        self._pulse()
        has_no_place = isinstance(error, NoPlaceError)
        if has_no_place and any(each.is_up for each in self.slots):
            slot.fruitless = 0
            logger.warning("%s: %s; it is tried again", slot.replica.name, error)
            await self._pause(_LONGEST_PAUSE_S / 4)
            return True
        logger.warning("%s is gone (%d items were with it): %s", slot.replica.name, num_lost, error)
        patience = _MOST_FRUITLESS if self._was_ever_up or has_no_place else 1
        if slot.fruitless >= patience or self.num_restarts >= self._limits.max_restarts:
            logger.error("%s is not started again; the others go on", slot.replica.name)
            return False
        self.num_restarts += not has_no_place
        await self._pause(min(_FIRST_PAUSE_S * 2**slot.fruitless, _LONGEST_PAUSE_S))
        return True

    async def _pause(self, pause_s: float) -> None:
        """Wait so long, or until nothing is left to wait for."""
        end = time.monotonic() + pause_s
        while not self._over() and self._deadline is None and time.monotonic() < end:
            await asyncio.sleep(min(0.2, pause_s))

    def _pulse(self) -> None:
        self._changed.set()
