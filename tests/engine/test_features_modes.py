# SPDX-License-Identifier: Apache-2.0
"""Ways to run an engine, one pair of engines each: answers are stock's, less is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import host_offloading
import pytest
from tiny_engines import (
    admissions,
    check_clean,
    documents,
    generate,
    greedy,
    num_changes,
    num_computed,
    pair,
    scheduler_of,
    started,
    tokens,
)
from vllm import LLM as StockLLM

from vllm_batchllm import LLM


@contextmanager
def steps(llm: Any) -> Iterator[list[Any]]:
    """Every step's scheduler output."""
    scheduler, seen = scheduler_of(llm), []
    schedule = scheduler.schedule

    def recording(*args: Any) -> Any:
        seen.append(schedule(*args))
        return seen[-1]

    scheduler.schedule = recording
    try:
        yield seen
    finally:
        del scheduler.schedule


def test_priorities_come_first_and_groups_form_inside_one(tiny_model) -> None:
    prompts = documents()
    priorities = [number % 3 for number in range(len(prompts))]
    with pair(tiny_model, scheduling_policy="priority") as engines:
        expected = generate(engines.stock, prompts, priority=priorities)
        with admissions(engines.ours) as admitted:
            outputs = generate(engines.ours, prompts, priority=priorities)
        check_clean(engines.ours)
    assert tokens(outputs) == tokens(expected)
    assert [priorities[n] for n in admitted] == sorted(priorities)
    groups = [(priorities[n], tuple(prompts[n][:32])) for n in admitted]
    assert num_changes(groups) == len(set(groups)) - 1
    assert num_computed(outputs) < 0.8 * num_computed(expected)


def test_without_chunked_prefill_no_prompt_is_split(tiny_model) -> None:
    prompts = documents()
    with pair(tiny_model, enable_chunked_prefill=False) as engines:
        expected = generate(engines.stock, prompts)
        with steps(engines.ours) as seen:
            outputs = generate(engines.ours, prompts)
        check_clean(engines.ours)
        assert engines.ours.report().reuse_efficiency == pytest.approx(1.0)
    assert tokens(outputs) == tokens(expected)
    assert num_computed(outputs) < 0.8 * num_computed(expected)
    started_whole = [
        new.num_computed_tokens + step.num_scheduled_tokens[new.req_id] == len(new.prompt_token_ids)
        for step in seen
        for new in step.scheduled_new_reqs
    ]
    assert len(started_whole) == len(prompts) and all(started_whole)


def test_kv_offloading_to_host_memory(tiny_model) -> None:
    """One engine after the other: vLLM holds one connector per process.

    The documents are asked about twice without emptying the cache in between, so the second round
    finds in host memory what the cache has given up.
    """
    offloading = {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": 64 << 20,
            "spec_name": "HostOffloadingSpec",
            "spec_module_path": host_offloading.__name__,
        },
    }
    prompts = documents()
    answers, loaded = [], []
    for cls in (StockLLM, LLM):
        with started(cls, tiny_model, kv_transfer_config=offloading) as llm:
            rounds = [generate(llm, prompts)]
            inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
            rounds.append(llm.generate(inputs, greedy(), use_tqdm=False))
            answers.append([tokens(outputs) for outputs in rounds])
            worker = host_offloading.HostOffloadingSpec.latest
            loaded.append((worker.num_stored, worker.num_loaded))
            check_clean(llm)
    assert answers[0] == answers[1] and answers[0][0] == answers[0][1]
    assert all(stored > 0 and read > 0 for stored, read in loaded), loaded
