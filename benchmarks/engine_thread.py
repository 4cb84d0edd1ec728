# SPDX-License-Identifier: Apache-2.0
"""What the engine's thread spends on what a plain batch does not have, ours against stock vLLM's.

    python benchmarks/engine_thread.py [--cases NAME ...] [--scale 0.1] [--json FILE]

Priorities, adapters, requests that are skipped in every step, long arrivals, large blocks, options for servers. Both
schedulers are real and run on a fake KV cache; the arms take turns step by step, times are CPU times of
this process, a row's ratio is that of the times of all its steps. ``--scale`` shrinks what waits.
``adapters-makespan`` counts steps until all is done, with eight adapters and two slots.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if __name__ == "__main__":  # whoever imports this keeps the log as it is
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "scheduler"))

import layer_kinds
from fake_engine import make_request, make_vllm_config, model_folder, model_output
from pooled import make
from vllm.config import KVTransferConfig
from vllm.config.lora import LoRAConfig
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from vllm_batchllm.scheduler.scheduler import BatchLLMScheduler

ARMS: dict[str, Any] = {"stock": Scheduler, "batchllm": BatchLLMScheduler}
NUM_STEPS, NUM_ARRIVALS = 60, 12


@dataclass(frozen=True, slots=True)
class Setup:
    """An engine, and who waits in it.

    fields: of request ``number``, beside its prompt. num_slots: adapters that a step can hold. encoder_tokens: of images
    that a step can encode, and ten times that in the cache of encoded ones. options: of our scheduler.
    """

    num_waiting: int
    fields: Callable[[int], dict[str, Any]]
    policy: str = "fcfs"
    num_slots: int = 0
    has_connector: bool = False
    num_groups: int = 1
    block_size: int = 16
    num_blocks: int = 4_000
    max_num_seqs: int = 64
    max_tokens: int = 32
    prefix_tokens: int = 64
    encoder_tokens: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def priority_of(num_values: int) -> Callable[[int], dict[str, Any]]:
    """Request ``number`` has one of so many priorities."""
    return lambda number: {"priority": number * 7919 % num_values}


def adapter_of(num_adapters: int) -> Callable[[int], dict[str, Any]]:
    """Request ``number`` has one of so many adapters."""
    adapters = [LoRARequest(f"a{n}", n, f"/adapters/{n}") for n in range(1, num_adapters + 1)]
    return lambda number: {"lora_request": adapters[number * 7919 % num_adapters]}


def undecided(number: int) -> dict[str, Any]:
    """A connector that never says whether it has the prompt's blocks."""
    return {"transfer": {"undecided": 10**9}}


def image(number: int) -> dict[str, Any]:
    """An image of its own right behind what is shared."""
    place = PlaceholderRange(offset=64, length=32)
    feature = MultiModalFeatureSpec(
        data=None, modality="image", identifier=f"image-{number}", mm_position=place
    )
    return {"mm_features": [feature]}


def plain(number: int) -> dict[str, Any]:
    """Nothing beside the prompt."""
    return {}


POWER = {"power_weight": 0.1, "busy_power_w": 600.0, "idle_power_w": 100.0}
STEP_CASES: dict[str, Setup] = {
    **{
        f"priorities-{n}": Setup(2_000, priority_of(n), policy="priority")
        for n in (1, 1_000, 2_000)
    },
    **{f"adapters-{n}": Setup(10_000, adapter_of(n), num_slots=4) for n in (1, 4, 100)},
    "ask-again": Setup(10_000, undecided, has_connector=True),
    "images": Setup(10_000, image, max_num_seqs=1_024, encoder_tokens=4 * 32),
    "blocks-16": Setup(2_000, plain, max_num_seqs=1_024, num_blocks=16_000),
    "blocks-1056": Setup(2_000, plain, max_num_seqs=1_024, block_size=1_056, num_blocks=2_000),
    **{
        f"online-{name}-{seqs}": Setup(
            2_000,
            plain,
            policy="priority",
            max_num_seqs=seqs,
            num_blocks=16_000,
            options=options,
            max_tokens=1 if name == "one-shot" else 32,
        )
        for name, options in (
            ("none", {}),
            ("tbt", {"target_tbt_ms": 1e4}),
            ("ttft", {"target_ttft_ms": 1e5}),
            ("one-shot", {"release": "one-shot"} | POWER),
            ("groups", {"release": "groups", "max_hold_s": 0.001}),
        )
        for seqs in (64, 1_024)
    },
}
"""Targets that no step of a fake engine reaches, so that only their own work is added."""
ARRIVAL_CASES: dict[str, tuple[int, int, bool]] = {
    f"arrival-{name}-{groups}-groups{'-cached' * cached}": (num_tokens, groups, cached)
    for name, num_tokens in (("1k", 1_000), ("32k", 32_000), ("1M", 1_000_000))
    for groups in (1, 6)
    for cached in (False, True)
    if not (cached and num_tokens > 32_000)
}
MAKESPAN = Setup(
    1_600, adapter_of(8), num_slots=2, num_blocks=1_500, max_num_seqs=128, max_tokens=64
)


def build(arm: str, model: str, setup: Setup) -> Any:
    """One arm's scheduler, nobody waiting."""
    config = make_vllm_config(
        model,
        num_blocks=setup.num_blocks,
        block_size=setup.block_size,
        max_num_seqs=setup.max_num_seqs,
        max_num_batched_tokens=8_192,
        policy=setup.policy,
    )
    if setup.num_slots:
        config.lora_config = LoRAConfig(max_lora_rank=16, max_loras=setup.num_slots)
    if setup.has_connector:
        config.kv_transfer_config = KVTransferConfig(
            kv_connector="FakeConnector",
            kv_connector_module_path="fake_connector",
            kv_role="kv_both",
        )
    if setup.options and arm != "stock":
        config.additional_config = {"batchllm": setup.options}
    specs = [layer_kinds.full(setup.block_size)]
    specs += [layer_kinds.window(1_024, setup.block_size)] * (setup.num_groups - 1)
    scheduler = make(ARMS[arm], config, specs)
    scheduler.max_model_len = 2_000_000
    if setup.encoder_tokens:
        scheduler.max_num_encoder_input_tokens = setup.encoder_tokens
        scheduler.encoder_cache_manager = EncoderCacheManager(10 * setup.encoder_tokens)
    return scheduler


def prompts(setup: Setup) -> Iterator[list[int]]:
    """Without end: sixteen in a row share a prefix."""
    rng = random.Random(0)
    number = 0
    while True:
        group = number // 16
        shared = [group % 997, group // 997] * (setup.prefix_tokens // 2)
        yield shared + rng.choices(range(1_000), k=32)
        number += 1


def request_of(number: int, prompt: list[int], setup: Setup) -> Request:
    """A request as the engine would take it."""
    fields = setup.fields(number)
    sampling = (
        {"extra_args": {"kv_transfer_params": fields.pop("transfer")}}
        if "transfer" in fields
        else {}
    )
    return make_request(
        str(number),
        prompt,
        max_tokens=setup.max_tokens,
        block_size=setup.block_size,
        sampling=sampling,
        arrival_time=float(number),
        **fields,
    )


class Arm:
    """A scheduler with as many waiting as its setup wants."""

    def __init__(self, name: str, model: str, setup: Setup) -> None:
        self.scheduler = build(name, model, setup)
        self._setup = setup
        self._prompts = prompts(setup)
        self._num_fed = 0
        self.feed()

    def feed(self) -> None:
        """Replace who has left the queue."""
        for _ in range(self._setup.num_waiting - len(self.scheduler.waiting)):
            request = request_of(self._num_fed, next(self._prompts), self._setup)
            self.scheduler.add_request(request)
            self._num_fed += 1

    def step(self) -> float:
        """One step; CPU seconds of it."""
        scheduler = self.scheduler
        start = time.process_time()
        output = scheduler.schedule()
        seconds = time.process_time() - start
        made = model_output(scheduler, output)
        start = time.process_time()
        scheduler.update_from_output(output, made)
        return seconds + time.process_time() - start


def measure_steps(setup: Setup, model: str, num_steps: int) -> dict[str, Any]:
    """Mean CPU time of a step of both arms, in turns, behind as many for warming up."""
    arms = {name: Arm(name, model, setup) for name in ARMS}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    gc.collect()
    gc.freeze()
    for number in range(2 * num_steps):
        for name in sorted(arms, reverse=bool(number % 2)):
            taken = arms[name].step()
            if number >= num_steps:
                seconds[name].append(taken)
            arms[name].feed()
    gc.unfreeze()
    means = {name: statistics.mean(taken) * 1e3 for name, taken in seconds.items()}
    return {f"{name}_ms": round(mean, 3) for name, mean in means.items()} | {
        "ratio": round(means["batchllm"] / means["stock"], 3)
    }


def measure_arrivals(num_tokens: int, num_groups: int, cached: bool, model: str) -> dict[str, Any]:
    """Median CPU time of ``add_request`` and of making the request, which hashes its blocks."""
    setup = Setup(
        0,
        plain,
        num_groups=num_groups,
        num_blocks=(num_tokens // 16 + 20_000) * num_groups,
        max_tokens=1,
        max_num_seqs=4,
    )
    seconds: dict[str, list[float]] = {name: [] for name in (*ARMS, "hashing")}
    rng = random.Random(1)
    arms = {name: build(name, model, setup) for name in ARMS}
    for scheduler in arms.values():  # something is cached in any case
        for number in range(4):
            _serve(scheduler, request_of(10**6 + number, [number + 5] * 4_000, setup))
    for number in range(NUM_ARRIVALS):
        prompt = rng.choices(range(1_000), k=num_tokens)
        for name, scheduler in arms.items():
            if cached:
                _serve(scheduler, request_of(2 * 10**6 + number, prompt, setup))
            start = time.process_time()
            request = request_of(number, prompt, setup)
            made = time.process_time()
            scheduler.add_request(request)
            seconds[name].append(time.process_time() - made)
            seconds["hashing"].append(made - start)
            scheduler.finish_requests([request.request_id], _aborted())
    return {f"{name}_ms": round(statistics.median(s) * 1e3, 3) for name, s in seconds.items()}


def _aborted() -> Any:
    from vllm.v1.request import RequestStatus

    return RequestStatus.FINISHED_ABORTED


def _serve(scheduler: Any, request: Request) -> None:
    scheduler.add_request(request)
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        scheduler.update_from_output(output, model_output(scheduler, output))


def measure_makespan(setup: Setup, model: str) -> dict[str, Any]:
    """Steps until all are served, and how often a request was looked at and skipped."""
    figures: dict[str, Any] = {}
    for name in ARMS:
        arm = Arm(name, model, setup)
        num_steps = num_skipped = 0
        while arm.scheduler.has_unfinished_requests():
            arm.step()
            num_steps += 1
            num_skipped += len(arm.scheduler.deferred_waiting)
        figures |= {f"{name}_steps": num_steps, f"{name}_skipped": num_skipped}
    return figures | {"ratio": round(figures["batchllm_steps"] / figures["stock_steps"], 3)}


def run_case(name: str, model: str, scale: float) -> dict[str, Any]:
    """The row called ``name``. Raises KeyError if there is none."""
    if name in ARRIVAL_CASES:
        return measure_arrivals(*ARRIVAL_CASES[name], model)
    if name == "adapters-makespan":
        return measure_makespan(scaled(MAKESPAN, scale), model)
    return measure_steps(scaled(STEP_CASES[name], scale), model, max(int(NUM_STEPS * scale), 10))


def scaled(setup: Setup, scale: float) -> Setup:
    """The same with fewer who wait."""
    from dataclasses import replace

    return replace(setup, num_waiting=int(setup.num_waiting * scale))


def main(argv: Sequence[str] | None = None) -> None:
    names = [*STEP_CASES, *ARRIVAL_CASES, "adapters-makespan"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=names, default=names)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(Path(folder))
        for name in args.cases:
            rows[name] = run_case(name, model, args.scale)
            print(json.dumps({"case": name} | rows[name]), flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
