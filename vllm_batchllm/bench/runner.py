# SPDX-License-Identifier: Apache-2.0
"""Runs the arms of an A/B in turn, in one process, on engines that differ in the scheduler only.

A machine's speed changes within seconds, so the arms of a round take turns every few steps (`turns.py`), if there
is memory for an engine each; ratios are taken within rounds before the median is taken over them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_batchllm.bench.engine import (
    ARMS,
    STOCK,
    EngineSpec,
    scheduler_of,
)
from vllm_batchllm.bench.engines import Engines
from vllm_batchllm.bench.lanes import arrival_order, first_requests, frozen_heap, lane_of
from vllm_batchllm.bench.outputs import compare_outputs, gap_finder
from vllm_batchllm.bench.pace import OnProgress, Pace, Progress
from vllm_batchllm.bench.turns import Lane, take_turns
from vllm_batchllm.errors import UsageError, unknown_name
from vllm_batchllm.measure.metrics import ABResult, OutputMatch, RunInputs, RunMetrics, run_metrics
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.workloads.batch import Batch, distinct_prefix_tokens

MIN_ROUNDS = 3
_NUM_WARM_UP_REQUESTS = 64
_TELL_EVERY_S = 0.5


def run_ab(
    spec: EngineSpec,
    batch: Batch,
    arms: Sequence[str] = ARMS,
    rounds: int = MIN_ROUNDS,
    on_progress: OnProgress | None = None,
    llms: Engines | Mapping[str, Any] | None = None,
    *,
    quick: bool = False,
) -> ABResult:
    """Run a batch through every arm, `rounds` times, and compare.

    Args:
        spec: what the engines are built from (or were, if `llms` is given).
        batch: the requests; all of them are queued before the first step.
        arms: any of `ARMS`; outputs are compared with `stock`, or the first arm without it.
        rounds: runs of each arm; fewer than 3 only with `quick`.
        on_progress: called before engines start, before and after each run.
        llms: engines that are already there, `{"stock": LLM, "batchllm": LLM}`; they are
            checked against each other and left running.
        quick: allow fewer than 3 rounds, for a look instead of a measurement.

    Raises:
        UsageError: a bad batch or arm, too few rounds, engines that do not fit the batch or
            differ in more than the scheduler, or a request that did not produce its output
            length.
    """
    batch.check()
    check_arms(arms, rounds, quick)
    _check_fit(spec, batch)
    report = on_progress or (lambda _: None)
    num_runs = rounds * len(arms)
    report(Progress(batch.name, "starting engines", 0, num_runs))
    session = _Session(spec, batch, tuple(arms), report, num_runs)
    for is_last, built, part in _halves(arms, rounds, rebuild=llms is None):
        with _engines(spec, built, llms) as engines:
            engines.check()
            session.warm_up(engines)
            for index in part:
                first = index % len(arms)
                session.run_round((*arms[first:], *arms[:first]), index)
            if is_last:
                return session.result()
    raise AssertionError("unreachable: the last half returns")


def _halves(
    arms: Sequence[str], rounds: int, rebuild: bool
) -> Iterator[tuple[bool, Sequence[str], range]]:
    """The rounds in two halves, with engines built in opposite order.

    The engine that starts second in a process runs a few percent slower on a CPU, whatever its
    scheduler; over both halves that cancels out.
    """
    if not rebuild or rounds == 1:
        yield True, arms, range(rounds)
        return
    middle = (rounds + 1) // 2
    yield False, arms, range(middle)
    yield True, arms[::-1], range(middle, rounds)


def check_arms(arms: Sequence[str], rounds: int, quick: bool) -> None:
    """Raise UsageError for arms that are unknown or named twice, or for too few rounds."""
    if not arms or len(set(arms)) != len(arms):
        raise UsageError(f"arms must be named, each once, not {list(arms)}")
    for arm in arms:
        if arm not in ARMS:
            raise unknown_name("arm", arm, ARMS)
    if rounds < 1 or (rounds < MIN_ROUNDS and not quick):
        raise UsageError(
            f"{rounds} rounds say nothing on a noisy machine: use at least {MIN_ROUNDS}, "
            "or --quick for a look"
        )


def _check_fit(spec: EngineSpec, batch: Batch) -> None:
    if batch.max_request_tokens > spec.max_model_len:
        raise UsageError(
            f"batch {batch.name!r} has a request of {batch.max_request_tokens} tokens, above "
            f"max_model_len = {spec.max_model_len}"
        )
    if batch.lengths_known != spec.lengths_known:
        raise UsageError(
            f"batch {batch.name!r} has lengths_known={batch.lengths_known}, its engines "
            f"lengths_known={spec.lengths_known}; they must agree"
        )


def _engines(
    spec: EngineSpec, arms: Sequence[str], llms: Engines | Mapping[str, Any] | None
) -> AbstractContextManager[Engines]:
    if llms is None:
        return Engines.build(spec, arms)
    return nullcontext(llms if isinstance(llms, Engines) else Engines(dict(llms)))


class _Session:
    """The runs of one `run_ab` call and what they left behind."""

    def __init__(
        self,
        spec: EngineSpec,
        batch: Batch,
        arms: tuple[str, ...],
        report: OnProgress,
        num_runs: int,
    ) -> None:
        self._spec, self._batch, self._arms = spec, batch, arms
        self._engines = Engines({})
        self._report, self._num_runs = report, num_runs
        self._inputs = RunInputs(
            num_requests=batch.num_requests,
            prompt_tokens=batch.prompt_tokens,
            output_tokens=batch.output_tokens,
            optimal_saved_tokens=optimal_saved_tokens(
                batch.prompts, spec.block_size, limits=batch.limits
            ),
        )
        self._kv_blocks = spec.kv_blocks
        self._sizes: dict[str, dict[str, float]] = {}
        self._runs: list[RunMetrics] = []
        self._outputs: dict[tuple[str, int], list[list[int]]] = {}

    def warm_up(self, engines: Engines) -> None:
        """Use ``engines`` from now on, after a few requests through each: first calls
        allocate and choose kernels."""
        self._engines = engines
        cache = engines.for_arm(self._arms[0]).llm_engine.vllm_config.cache_config
        self._kv_blocks = self._spec.kv_blocks or cache.num_gpu_blocks
        self._sizes = {arm: resolved_sizes(engines.for_arm(arm)) for arm in self._arms}
        part = first_requests(self._batch, _NUM_WARM_UP_REQUESTS)
        by_engine = {id(engines.for_arm(arm)): arm for arm in reversed(self._arms)}
        self._serve("warming up", part, list(by_engine.values()), num_sharing=0)

    def run_round(self, arms: Sequence[str], round_index: int) -> None:
        """One measured run of every arm: in turns, or one after the other where engines are shared."""
        together = self._engines.can_take_turns(arms)
        for some in [arms] if together else [[arm] for arm in arms]:
            num_rounds = self._num_runs // len(self._arms)
            stage = f"round {round_index + 1} of {num_rounds}, {', '.join(some)}"
            for lane in self._serve(stage, self._batch, some, num_sharing=len(some)):
                self._book(lane, round_index)

    def _serve(self, stage: str, batch: Batch, arms: Sequence[str], num_sharing: int) -> list[Lane]:
        """Serve ``batch`` by engines that take turns, and tell how far they are."""
        self._tell(stage)
        with ExitStack() as stack:
            lanes = [self._lane(arm, batch, stack) for arm in arms]
            num_tokens = sum(lane.num_tokens for lane in lanes)
            began_s = told_s = time.perf_counter()

            def on_turn() -> None:
                nonlocal told_s
                now_s = time.perf_counter()
                if now_s - told_s >= _TELL_EVERY_S:
                    done = sum(lane.tokens_done() for lane in lanes)
                    pace = Pace(done, num_tokens, now_s - began_s)
                    self._tell(stage, pace=pace, num_sharing=num_sharing)
                    told_s = now_s

            with frozen_heap():
                take_turns(lanes, on_turn=on_turn)
        return lanes

    def _lane(self, arm: str, batch: Batch, stack: ExitStack) -> Lane:
        llm = self._engines.for_arm(arm)
        if not llm.reset_prefix_cache():
            raise UsageError(f"the prefix cache of arm {arm!r} cannot be emptied before a run")
        counts = stack.enter_context(record(scheduler_of(llm)))
        return lane_of(arm, llm, batch, counts)

    def _book(self, lane: Lane, round_index: int) -> None:
        indices = arrival_order(self._batch, lane.arm)
        by_request: list[list[int]] = [[] for _ in indices]
        for place, output in lane.outputs.items():
            by_request[indices[place]] = output
        self._check_lengths(lane.arm, by_request)
        self._outputs[lane.arm, round_index] = by_request
        run = run_metrics(lane.arm, round_index, self._inputs, lane.record, lane.wall_s, lane.cpu_s)
        self._runs.append(run)
        self._tell(f"round {round_index + 1}, {lane.arm}", run)

    def result(self) -> ABResult:
        """Compare the outputs and put everything together."""
        self._tell("comparing outputs")
        return ABResult(
            workload=describe(self._batch, self._spec.block_size),
            engine=asdict(self._spec)
            | {
                "model": Path(self._spec.model).name,
                "kv_blocks": self._kv_blocks,
                "sizes": self._sizes,
            },
            arms=self._arms,
            runs=tuple(self._runs),
            matches=tuple(self._match(arm) for arm in self._arms),
        )

    def _match(self, arm: str) -> OutputMatch:
        reference = STOCK if STOCK in self._arms else self._arms[0]
        num_rounds = len(self._runs) // len(self._arms)
        # The reference itself is held against its own first round.
        pairs = [
            (self._outputs[reference, 0 if arm == reference else i], self._outputs[arm, i])
            for i in range(num_rounds)
        ]
        finder = gap_finder(self._engines.for_arm(reference), self._batch)
        return compare_outputs(arm, pairs, finder)

    def _check_lengths(self, arm: str, outputs: list[list[int]]) -> None:
        for index, (output, wanted) in enumerate(
            zip(outputs, self._batch.output_lens, strict=True)
        ):
            if len(output) != wanted:
                raise UsageError(
                    f"request {index} of batch {self._batch.name!r} produced {len(output)} "
                    f"tokens instead of {wanted} in arm {arm!r}; the arms cannot be compared"
                )

    def _tell(self, stage: str, run: RunMetrics | None = None, **more: Any) -> None:
        done = len(self._runs)
        self._report(Progress(self._batch.name, stage, done, self._num_runs, run, **more))


def resolved_sizes(llm: Any) -> dict[str, float]:
    """The sizes with which an engine runs, whoever has set them."""
    config = llm.llm_engine.vllm_config.scheduler_config
    return {
        "max_num_seqs": config.max_num_seqs,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "watermark": config.watermark,
    }


def describe(batch: Batch, block_size: int) -> dict[str, Any]:
    """The batch in figures, for reports."""
    return {
        "name": batch.name,
        "description": batch.description,
        "seed": batch.seed,
        "scale": batch.scale,
        "num_requests": batch.num_requests,
        "prompt_tokens": batch.prompt_tokens,
        "output_tokens": batch.output_tokens,
        "distinct_prefix_tokens": distinct_prefix_tokens(batch.prompts),
        "pressure": batch.pressure,
        "lengths_known": batch.lengths_known,
        "block_size": block_size,
    }
