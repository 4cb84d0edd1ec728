# SPDX-License-Identifier: Apache-2.0
"""Runs the arms of an A/B in turn, in one process, on engines that differ in the scheduler only.

A machine's speed drifts over minutes, so runs are compared in pairs: each round runs every
arm once, the order of the arms is rotated from round to round, and ratios are taken within
rounds before the median is taken over them.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_batchllm.bench.engine import (
    ARMS,
    ENGINE_OF_ARM,
    SORTED,
    STOCK,
    EngineSpec,
    scheduler_of,
)
from vllm_batchllm.bench.engines import Engines
from vllm_batchllm.bench.outputs import compare_outputs, gap_finder
from vllm_batchllm.bench.sampling import sampling_params
from vllm_batchllm.errors import UsageError, unknown_name
from vllm_batchllm.measure.metrics import ABResult, OutputMatch, RunInputs, RunMetrics, run_metrics
from vllm_batchllm.measure.recorder import record
from vllm_batchllm.prefix.best_saving import optimal_saved_tokens
from vllm_batchllm.workloads.batch import Batch, distinct_prefix_tokens

MIN_ROUNDS = 3
_NUM_WARM_UP_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """What `run_ab` is about to do (`run` is None) or has just done."""

    workload: str
    stage: str
    num_done: int
    num_runs: int
    run: RunMetrics | None = None


OnProgress = Callable[[Progress], None]


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
    _check_arms(arms, rounds, quick)
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
                for arm in (*arms[first:], *arms[:first]):
                    session.run(arm, index)
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


def _check_arms(arms: Sequence[str], rounds: int, quick: bool) -> None:
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
        self._params = sampling_params(batch)
        self._inputs = RunInputs(
            num_requests=batch.num_requests,
            prompt_tokens=batch.prompt_tokens,
            output_tokens=batch.output_tokens,
            optimal_saved_tokens=optimal_saved_tokens(batch.prompts, spec.block_size),
        )
        self._runs: list[RunMetrics] = []
        self._outputs: dict[tuple[str, int], list[list[int]]] = {}

    def warm_up(self, engines: Engines) -> None:
        """Use ``engines`` from now on, after a few requests through each: first calls
        allocate and choose kernels."""
        self._engines = engines
        self._tell("warming up")
        indices = range(min(_NUM_WARM_UP_REQUESTS, self._batch.num_requests))
        for name in dict.fromkeys(ENGINE_OF_ARM[arm] for arm in self._arms):
            self._generate(self._engines.for_arm(name), indices)

    def run(self, arm: str, round_index: int) -> None:
        """One measured run of one arm."""
        self._tell(f"round {round_index + 1}, {arm}")
        llm = self._engines.for_arm(arm)
        if not llm.reset_prefix_cache():
            raise UsageError(f"the prefix cache of arm {arm!r} cannot be emptied before a run")
        indices = arrival_order(self._batch, arm)
        gc.collect()
        with record(scheduler_of(llm)) as counts:
            start, cpu_start = time.perf_counter(), time.process_time()
            outputs = self._generate(llm, indices)
            makespan_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
        by_request: list[list[int]] = [[] for _ in indices]
        for index, output in zip(indices, outputs, strict=True):
            by_request[index] = output
        self._check_lengths(arm, by_request)
        self._outputs[arm, round_index] = by_request
        run = run_metrics(arm, round_index, self._inputs, counts, makespan_s, cpu_s)
        self._runs.append(run)
        self._tell(f"round {round_index + 1}, {arm}", run)

    def result(self) -> ABResult:
        """Compare the outputs and put everything together."""
        self._tell("comparing outputs")
        return ABResult(
            workload=describe(self._batch, self._spec.block_size),
            engine=asdict(self._spec) | {"model": Path(self._spec.model).name},
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

    def _generate(self, llm: Any, indices: Sequence[int]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": self._batch.prompts[i]} for i in indices]
        params = [self._params[i] for i in indices]
        finished = llm.generate(prompts, params, use_tqdm=False)
        return [list(item.outputs[0].token_ids) for item in finished]

    def _check_lengths(self, arm: str, outputs: list[list[int]]) -> None:
        for index, (output, wanted) in enumerate(
            zip(outputs, self._batch.output_lens, strict=True)
        ):
            if len(output) != wanted:
                raise UsageError(
                    f"request {index} of batch {self._batch.name!r} produced {len(output)} "
                    f"tokens instead of {wanted} in arm {arm!r}; the arms cannot be compared"
                )

    def _tell(self, stage: str, run: RunMetrics | None = None) -> None:
        self._report(Progress(self._batch.name, stage, len(self._runs), self._num_runs, run))


def arrival_order(batch: Batch, arm: str) -> list[int]:
    """Indices of the requests in the order in which the arm queues them."""
    indices = list(range(batch.num_requests))
    if arm == SORTED:
        indices.sort(key=lambda index: batch.prompts[index])
    return indices


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
