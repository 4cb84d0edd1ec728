# SPDX-License-Identifier: Apache-2.0
"""`vllm-batchllm bench FILE`, engine options, and what a device has by default."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from plan_model import write_lines

from vllm_batchllm.bench.engine import EngineSpec, arm_kwargs
from vllm_batchllm.bench.engine_options import read_engine_options
from vllm_batchllm.bench.suite import WorkloadOptions, make_plan, resolve_workloads
from vllm_batchllm.errors import UsageError

ENGINE = EngineSpec(model="m", kv_blocks=0, max_model_len=0)
LINES = [
    {"prompt": [group + 10] * 40 + [place + 30], "max_tokens": 3}
    for place in range(4)
    for group in range(5)
]


def plan_of(path: Path, **options: Any) -> Any:
    return make_plan(str(path), WorkloadOptions(**options), ENGINE, vocab_size=4096)


def test_a_file_is_a_batch_whose_kv_is_vllms(tmp_path: Path) -> None:
    plan = plan_of(write_lines(tmp_path / "own.jsonl", LINES))
    assert plan.is_file and plan.batch.num_requests == 20
    assert (plan.spec.kv_blocks, plan.spec.max_model_len) == (0, 44)
    assert arm_kwargs(plan.spec, "stock", on_cpu=True)["num_gpu_blocks_override"] is None


def test_packed_files_and_a_kv_size_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, LINES)).encode()))
    plan = plan_of(path, kv_blocks=9)
    assert (plan.batch.num_requests, plan.spec.kv_blocks) == (20, 9)


def test_names_of_workloads_and_files_go_together(tmp_path: Path) -> None:
    path = str(write_lines(tmp_path / "own.jsonl", LINES))
    assert resolve_workloads([path, "industry", path]) == [path, "industry"]
    with pytest.raises(UsageError, match=r"none\.jsonl cannot be read"):
        resolve_workloads(["none.jsonl"])


def test_a_sample_is_of_whole_groups_in_their_order(tmp_path: Path) -> None:
    plan = plan_of(write_lines(tmp_path / "own.jsonl", LINES), num_requests=8, seed=3)
    firsts = [prompt[0] for prompt in plan.batch.prompts]
    assert len(set(firsts)) == 2 and all(firsts.count(first) == 4 for first in firsts)
    assert "sample of whole prefix groups: 8 of 20 requests" in plan.batch.description
    whole = [line["prompt"] for line in LINES]
    places = [whole.index(prompt) for prompt in plan.batch.prompts]
    assert places == sorted(places)


def test_tokens_that_the_model_does_not_know_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": [5000], "max_tokens": 1}])
    with pytest.raises(UsageError, match=r"token 5000, and the model knows 4096; give the --model"):
        plan_of(path)


def test_text_without_a_model_is_refused_by_the_name_of_the_option(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": "text", "max_tokens": 1}])
    with pytest.raises(UsageError, match="name the model with --model"):
        plan_of(path)


def test_engine_options_are_json_or_text_under_either_name() -> None:
    given = ["kv-cache-dtype=fp8", "--max-num-queued-reqs=2", "hf_overrides={}"]
    assert read_engine_options(given) == (
        ("kv_cache_dtype", "fp8"),
        ("max_num_queued_reqs", 2),
        ("hf_overrides", {}),
    )


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("kv_cache_dtype", "KEY=VALUE"),
        ("block-size=16", "'block_size': give --block-size"),
        ("scheduler_cls=x", "choose them with --arm"),
    ],
)
def test_engine_options_that_are_ours_are_refused(pair: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_engine_options([pair])


def test_an_engine_option_is_given_to_all_arms_alike() -> None:
    spec = EngineSpec("m", 9, 9, extra=(("kv_cache_dtype", "fp8"),))
    for arm in ("stock", "tuned-0.02", "batchllm"):
        assert arm_kwargs(spec, arm, on_cpu=True)["kv_cache_dtype"] == "fp8"
