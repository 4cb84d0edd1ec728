# SPDX-License-Identifier: Apache-2.0
"""The table of sizes: by device, by kind of work, by what the user set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_batchllm.plugin.engine_sizes import (
    Device,
    EngineSizes,
    Workload,
    cpu_block_size,
    describe_change,
    raised_seqs,
    seqs_ceiling,
)

SMALL_GPU = Device("gpu", max_graph_tokens=512, llm_max_num_seqs=256)
H100 = Device("gpu", max_graph_tokens=512, llm_max_num_seqs=1024)
CPU = Device("cpu", max_graph_tokens=512, llm_max_num_seqs=256)
CPU_IN_EIGHT = Device("cpu", max_graph_tokens=512, llm_max_num_seqs=2048)
TPU = Device("other", max_graph_tokens=512, llm_max_num_seqs=256)
PLAIN = Workload()


@pytest.mark.parametrize(
    ("device", "work", "ceiling"),
    [
        (SMALL_GPU, PLAIN, 512),
        (H100, PLAIN, 1024),
        (CPU, PLAIN, 1024),
        (CPU_IN_EIGHT, PLAIN, 2048),
        (TPU, PLAIN, None),
        # a request that decodes 4 tokens a step fills a graph of 512 with 128 requests
        (SMALL_GPU, Workload(tokens_per_decode=4), 256),
        (Device("gpu", 1024, 128), Workload(tokens_per_decode=4), 256),
        (SMALL_GPU, Workload(tokens_per_decode=None), None),
        (SMALL_GPU, Workload(generates=False), None),
        (SMALL_GPU, Workload(has_state=True), None),
        (SMALL_GPU, Workload(for_latency=True), None),
        (SMALL_GPU, Workload(max_num_active_seqs=100), None),
        (Device("gpu", 0, 256), PLAIN, 256),
    ],
)
def test_the_ceiling(device, work, ceiling) -> None:
    assert seqs_ceiling(device, work) == ceiling


@pytest.mark.parametrize(
    ("stock", "ceiling", "work", "seqs"),
    [
        (EngineSizes(256, 8192), 512, PLAIN, 512),
        (EngineSizes(256, 8192), None, PLAIN, 256),
        (EngineSizes(256, 8192), 1, PLAIN, 256),
        (EngineSizes(1024, 8192), 512, PLAIN, 1024),
        (EngineSizes(256, 300), 1024, PLAIN, 300),
        (EngineSizes(256, 256), 1024, PLAIN, 256),
        (EngineSizes(256, 4096), 1024, Workload(tokens_per_decode=6), 682),
        (EngineSizes(256, 8192), 1024, Workload(max_num_scheduled_tokens=600), 600),
    ],
)
def test_as_many_requests_as_the_ceiling_and_a_step_allow(stock, ceiling, work, seqs) -> None:
    assert raised_seqs(stock, ceiling, work) == seqs


@given(
    seqs=st.integers(1, 3000),
    more_tokens=st.integers(0, 20_000),
    ceiling=st.none() | st.integers(1, 5000),
    width=st.integers(1, 20),
)
def test_never_fewer_than_vllms_and_never_more_than_a_step_holds(
    seqs, more_tokens, ceiling, width
) -> None:
    stock = EngineSizes(seqs, seqs + more_tokens)
    raised = raised_seqs(stock, ceiling, Workload(tokens_per_decode=width))
    assert raised >= seqs
    assert raised <= stock.max_num_batched_tokens
    if raised > seqs:
        assert ceiling is not None and raised <= ceiling
        assert raised * width <= stock.max_num_batched_tokens


@pytest.mark.parametrize(
    ("chosen", "facts", "size"),
    [
        (128, {}, 32),
        (128, {"platform": "gpu"}, 128),
        (128, {"platform": "other"}, 128),
        (128, {"by_user": True}, 128),
        (128, {"has_state": True}, 128),
        (128, {"uses_mla": True}, 128),
        (16, {}, 16),
        (256, {}, 256),
        (64, {"by_user": True}, 64),
    ],
)
def test_smaller_blocks_only_where_vllm_took_its_cpu_default(chosen, facts, size) -> None:
    plain = {"platform": "cpu", "by_user": False, "has_state": False, "uses_mla": False}
    assert cpu_block_size(chosen, **plain | facts) == size


def test_a_change_names_the_option_that_fixes_it() -> None:
    told = describe_change("max_num_seqs", 256, 1024)
    assert told == "max_num_seqs 256 -> 1024 (fix it with --max-num-seqs)"
    assert describe_change("max_num_seqs", 256, 256) is None
