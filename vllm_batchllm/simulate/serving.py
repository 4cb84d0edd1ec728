# SPDX-License-Identifier: Apache-2.0
"""Several replicas at work on one batch: who makes the next step, and who is handed what.

Each has a clock of its own, and the one that is furthest behind makes the next step, so whoever takes from another does it when its
turn has come; or all make every step together. A request is made when it is handed over and dropped when it has ended: what waits
costs its tokens and no more.
"""

from __future__ import annotations

import heapq

from vllm_batchllm.simulate.cost_model import CostModel
from vllm_batchllm.simulate.engine import SimulatedEngine
from vllm_batchllm.simulate.feeds import Feed
from vllm_batchllm.simulate.pool import Window
from vllm_batchllm.simulate.ring import RequestMaker
from vllm_batchllm.simulate.run import OnProgress
from vllm_batchllm.workloads.batch import Batch

ASK_AGAIN = 0.01
"""Share of the time so far after which a replica that got nothing asks again."""


class Replica:
    """One engine, and what it was handed."""

    def __init__(self, number: int, engine: SimulatedEngine) -> None:
        self.number, self.engine = number, engine
        self.handed: list[int] = []
        self.asks_at_s = 0.0

    @property
    def now_s(self) -> float:
        return self.engine.clock.now_s

    @property
    def busy_s(self) -> float:
        return self.engine.parts.total_s


class Serving:
    """A batch being served."""

    def __init__(
        self,
        batch: Batch,
        feed: Feed,
        window: Window,
        maker: RequestMaker,
        replicas: list[Replica],
        costs: CostModel,
        on_progress: OnProgress | None,
    ) -> None:
        self._batch, self._feed, self._window, self._maker = batch, feed, window, maker
        self._replicas, self._costs, self._on_progress = replicas, costs, on_progress
        self._turns = [(0.0, replica.number) for replica in replicas]
        self._asleep: dict[int, None] = {}
        self._wakes_at_s = 0.0

    def run(self) -> None:
        """Until all have ended."""
        for replica in self._replicas:
            self._feed.look(replica.number, 0.0, 0.0)
        while self._turns:
            _, number = heapq.heappop(self._turns)
            replica = self._replicas[number]
            self._fill(replica, replica.now_s)
            if not replica.engine.has_work():
                self._asleep[number] = None
                continue
            self._step(replica)
            heapq.heappush(self._turns, (replica.now_s, number))

    def _step(self, replica: Replica) -> None:
        self._note(replica, replica.engine.step())
        self._wake(replica.now_s)

    def _note(self, replica: Replica, ended: set[str]) -> None:
        """Tell who has ended with a step of `replica`."""
        for name in ended:
            del replica.engine.ends[name]
            self._feed.ended(replica.number, int(name))
        if self._on_progress and ended:
            self._on_progress(len(ended))
        self._feed.look(replica.number, replica.busy_s, replica.now_s)

    def _fill(self, replica: Replica, now_s: float) -> None:
        """Hand over what the window lets in."""
        engine, feed = replica.engine, self._feed
        is_early = now_s < replica.asks_at_s and engine.has_work()
        if is_early or not feed.num_left:
            return
        limit = self._window.limit(feed.num_left, len(engine.scheduler.running))
        while (room := limit - engine.num_waiting) > 0:
            places = feed.take(replica.number, room, now_s)
            if not places:
                replica.asks_at_s = now_s * (1 + ASK_AGAIN)
                break
            for place in places:
                engine.ends[str(place)] = self._batch.output_lens[place]
                engine.scheduler.add_request(self._maker.make(place, place, len(replica.handed)))
                replica.handed.append(place)

    def _wake(self, now_s: float) -> None:
        """Those who had nothing to do look whether there is something to take, now that more is known."""
        if not self._asleep or not self._feed.num_left or now_s < self._wakes_at_s:
            return
        self._wakes_at_s = now_s * (1 + ASK_AGAIN)
        for number in [*self._asleep]:
            replica = self._replicas[number]
            self._fill(replica, now_s)
            if replica.engine.has_work():
                del self._asleep[number]
                replica.engine.clock.now_s = max(replica.now_s, now_s)
                heapq.heappush(self._turns, (replica.now_s, number))


class LockstepServing(Serving):
    """A batch being served by replicas that make every step together, as the data-parallel ranks of a mixture of experts do.

    A step lasts as long as that of the slowest, in what all have agreed on. Whoever has nothing to do makes the steps of the others
    along with them, which costs it no more than those.
    """

    def run(self) -> None:
        """Until all have ended."""
        now_s = 0.0
        for replica in self._replicas:
            self._feed.look(replica.number, 0.0, 0.0)
        while True:
            for replica in self._replicas:
                self._fill(replica, now_s)
            busy = [replica for replica in self._replicas if replica.engine.has_work()]
            if not busy:
                assert not self._feed.num_left, "requests that nobody was handed"
                return
            now_s = self._step_together(busy, now_s)

    def _step_together(self, busy: list[Replica], now_s: float) -> float:
        """One step of all; when it ends, seconds."""
        works = [(replica, replica.engine.put_together()) for replica in busy]
        done = [(replica, work) for replica, work in works if work is not None]
        if done:
            together = self._costs.agreed([work for _, work in done])
            now_s += max(replica.engine.book(work, together) for replica, work in done)
        for replica in busy:
            replica.engine.clock.now_s = now_s
            self._note(replica, replica.engine.take_back())
        return now_s
