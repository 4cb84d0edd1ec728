# SPDX-License-Identifier: Apache-2.0
"""Requests that arrive over time, one arm, one engine: exact in time on the costs of its steps."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_batchllm.errors import UsageError
from vllm_batchllm.measure.metrics import RunInputs, run_metrics
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.simulate.arms import Arm
from vllm_batchllm.simulate.cost_model import CostModel
from vllm_batchllm.simulate.energy import Energy
from vllm_batchllm.simulate.engine import MeterMaker, shared_config
from vllm_batchllm.simulate.latency import Latencies, TokenClock, TokenTimes
from vllm_batchllm.simulate.online_engine import OnlineEngine
from vllm_batchllm.simulate.ring import RequestMaker
from vllm_batchllm.simulate.run import OnProgress, SimulatedRun
from vllm_batchllm.simulate.sizes import EngineSizes, check_fits
from vllm_batchllm.workloads.batch import Batch


class EngineHangs(RuntimeError):
    """Requests wait, nothing runs, nothing comes, and the scheduler starts nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineRun(SimulatedRun):
    """What one run did with requests that arrived over time.

    metrics: `makespan_s` is from 0, when the arrivals begin to count, to the end of the last step; rates are over it.
    busy_s: in which the device worked. latencies: of all requests. by_class: of those of each priority. times: of every request.
    energy: of the devices; None where nobody said which they are, or their power is not known.
    """

    busy_s: float
    latencies: Latencies
    by_class: Mapping[int, Latencies]
    times: TokenTimes = field(repr=False, compare=False)
    energy: Energy | None = None

    @property
    def busy_ratio(self) -> float:
        """Share of the makespan in which the device worked."""
        return self.busy_s / self.metrics.makespan_s

    @property
    def output_tokens_per_s(self) -> float:
        """Output tokens over the makespan."""
        return self.metrics.output_tokens / self.metrics.makespan_s

    def more_figures(self) -> dict[str, Any]:
        """Plain values for the record."""
        energy = (
            None if self.energy is None else {"joules": self.energy.joules} | asdict(self.energy)
        )
        return {
            "online": {
                "busy_s": self.busy_s,
                "busy_ratio": self.busy_ratio,
                "output_tokens_per_s": self.output_tokens_per_s,
                "latencies": asdict(self.latencies),
                "by_class": {str(one): asdict(found) for one, found in self.by_class.items()},
                "energy": energy,
            }
        }


def check_online(arm: Arm, sizes: EngineSizes) -> None:
    """Raise UsageError if `arm` or `sizes` make no sense when requests arrive over time."""
    if arm.is_sorted or arm.arranged is not None:
        raise UsageError(
            f"policy {arm.name!r} arranges requests before the first one starts, which nobody can who waits for "
            "them to arrive; leave it out, or the arrivals"
        )
    if sizes.max_waiting is not None:
        raise UsageError(
            f"a lookahead of {sizes.max_waiting} holds requests back from the engine, and arrivals over time say when "
            "each one reaches it; give one of them"
        )


def run_online(
    batch: Batch,
    arrivals_s: Sequence[float],
    arm: Arm,
    sizes: EngineSizes,
    costs: CostModel,
    priorities: Sequence[int] | None = None,
    *,
    policy: str | None = None,
    optimal_saved: int | None = None,
    on_progress: OnProgress | None = None,
    sharing: MeterMaker | None = None,
) -> OnlineRun:
    """Serve `batch` by `arm` as its requests arrive; deterministic but for `plan_s` and `wall_s`.

    Args:
        arrivals_s: when each request of the batch arrives, seconds from 0, in any order; of equal ones the first in the
            batch comes first.
        priorities: vLLM's, of each request, the smaller the more urgent; None for 0. They are the classes of the result.
        policy: vLLM's, "fcfs" or "priority"; None for "priority" where there are priorities.
        optimal_saved: prompt tokens that could be saved at best; None computes it.
        sharing: makes of the scheduler what counts shared KV; None for that of the costs.

    Raises:
        UsageError: the batch, the arrivals or the priorities cannot be run, or not by this arm.
        EngineHangs: the scheduler starts nobody although requests wait, and says no time at which it will.
    """
    batch.check()
    check_fits(batch, sizes)
    check_online(arm, sizes)
    classes = [0] * batch.num_requests if priorities is None else list(priorities)
    _check_times(batch, arrivals_s, classes)
    if optimal_saved is None:
        optimal_saved = optimal_saved_tokens(batch.prompts, sizes.block_size, limits=batch.limits)
    began_s = time.perf_counter()
    chosen = policy or ("fcfs" if priorities is None else "priority")
    serving = _Serving(batch, arrivals_s, arm, sizes, costs, classes, chosen, sharing, on_progress)
    engine = serving.engine
    with record(engine.scheduler) as steps:
        serving.run()
    inputs = RunInputs(batch.num_requests, batch.prompt_tokens, batch.output_tokens, optimal_saved)
    snapshot = getattr(engine.scheduler, "batchllm_snapshot", dict)
    times = serving.tokens.times()
    return OnlineRun(
        metrics=run_metrics(arm.name, 0, inputs, steps, engine.device_s),
        parts=engine.parts,
        wall_s=time.perf_counter() - began_s,
        counters={**snapshot(), "watermark": arm.watermark},
        graph_modes=dict(engine.modes),
        busy_s=engine.parts.total_s,
        latencies=times.latencies(),
        by_class=times.by_class(classes),
        times=times,
    )


def _check_times(batch: Batch, arrivals_s: Sequence[float], priorities: Sequence[int]) -> None:
    for what, values in (("arrivals", arrivals_s), ("priorities", priorities)):
        if len(values) != batch.num_requests:
            raise UsageError(
                f"batch {batch.name!r} has {batch.num_requests} requests but {len(values)} {what}"
            )
    for index, at_s in enumerate(arrivals_s):
        if not (math.isfinite(at_s) and at_s >= 0):
            raise UsageError(f"request {index} arrives at {at_s:g} s; it must be 0 s or later")


class _Serving:
    """A batch that arrives and is served."""

    def __init__(
        self,
        batch: Batch,
        arrivals_s: Sequence[float],
        arm: Arm,
        sizes: EngineSizes,
        costs: CostModel,
        priorities: Sequence[int],
        policy: str,
        sharing: MeterMaker | None,
        on_progress: OnProgress | None,
    ) -> None:
        self.tokens = TokenClock(arrivals_s)
        self.engine = OnlineEngine(
            batch,
            arm,
            sizes,
            costs,
            sharing=sharing,
            config=shared_config(batch, arm, sizes, policy),
            on_tokens=self._got,
        )
        self.engine.ends = {str(place): length for place, length in enumerate(batch.output_lens)}
        self._maker = RequestMaker(batch, sizes.block_size)
        self._arrivals_s, self._priorities = arrivals_s, priorities
        self._order = sorted(range(batch.num_requests), key=lambda place: arrivals_s[place])
        self._num_arrived = 0
        self._left = Counter({str(place): n for place, n in enumerate(batch.output_lens)})
        self._on_progress = on_progress

    def run(self) -> None:
        """Until all have ended."""
        while True:
            self._let_in()
            if self.engine.turn():
                continue
            at_s = self._next_event_s()
            if at_s is None:
                break
            self.engine.clock.now_s = at_s
        if self._left:
            raise EngineHangs(
                f"the engine hangs at {self.engine.clock.now_s:g} s: {len(self._left)} requests lack tokens, nothing runs, "
                "nothing more arrives, and the scheduler starts nobody"
            )

    def _let_in(self) -> None:
        """Hand over all that have arrived by now."""
        now_s, order = self.engine.clock.now_s, self._order
        while self._num_arrived < len(order):
            place = order[self._num_arrived]
            if self._arrivals_s[place] > now_s:
                return
            request = self._maker.make(
                place, place, self._arrivals_s[place], self._priorities[place]
            )
            self.engine.scheduler.add_request(request)
            self._num_arrived += 1

    def _next_event_s(self) -> float | None:
        """When something changes by itself: an arrival, or that the scheduler lets go whom it held back; None for never.

        A release that is over is none: the scheduler was asked since.
        """
        events: list[float] = []
        if self._num_arrived < len(self._order):
            events.append(self._arrivals_s[self._order[self._num_arrived]])
        next_release_s = getattr(self.engine.scheduler, "next_release_s", None)
        release_s = None if next_release_s is None else next_release_s()
        if release_s is not None and release_s > self.engine.clock.now_s:
            events.append(release_s)
        return min(events, default=None)

    def _got(self, name: str, num_tokens: int, at_s: float) -> None:
        self.tokens.tokens(int(name), num_tokens, at_s)
        self._left[name] -= num_tokens
        if self._left[name] <= 0:
            del self._left[name]
            if self._on_progress:
                self._on_progress(1)
