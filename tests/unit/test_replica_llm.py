# SPDX-License-Identifier: Apache-2.0
"""`LLM` over several engines: which calls mean that, and what becomes of every public name."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest
import vllm
from vllm.v1.metrics.reader import Counter

from vllm_batchllm import LLM
from vllm_batchllm.llm import ReplicatedLLM
from vllm_batchllm.offline.engine import OfflineEngine
from vllm_batchllm.replicas.engine_worker import BatchBooks
from vllm_batchllm.replicas.llm_methods import ReplicatedMethods
from vllm_batchllm.replicas.llm_of_all import MethodsOfAll
from vllm_batchllm.replicas.llm_options import for_one_engine, num_replicas_of
from vllm_batchllm.replicas.llm_report import merged_report
from vllm_batchllm.replicas.llm_ways import WAYS, NotWithReplicasError, Way
from vllm_batchllm.stats.counters import ScheduleCounters


def public_names() -> set[str]:
    """Of `LLM`, methods and what its constructors set."""
    names = {name for name in dir(LLM) if not name.startswith("_")}
    for cls in (vllm.LLM, OfflineEngine):
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return {name for name in names if not name.startswith("_")}


def test_no_public_name_is_without_a_way():
    assert public_names() - set(WAYS) == set()


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way is not Way.REFUSED])
def test_what_is_served_is_taken_over(name):
    taken_over = (
        name in vars(ReplicatedMethods)
        or name in vars(MethodsOfAll)
        or name in inspect.getsource(ReplicatedMethods.__init__)
    )
    builds_on_those = {
        "loglikelihood",
        "loglikelihood_rolling",
        "get_default_sampling_params",
        "from_engine_args",
    }
    assert taken_over or name in builds_on_those


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way is Way.REFUSED])
def test_what_belongs_to_one_engine_is_refused_by_name(name):
    llm = object.__new__(ReplicatedLLM)
    llm._num_replicas = 3
    with pytest.raises(NotWithReplicasError, match=rf"LLM\.{name} .*data_parallel_size=3"):
        getattr(llm, name)
    assert not hasattr(llm, name)


@pytest.mark.parametrize(
    ("batchllm", "kwargs", "number"),
    [
        (None, {}, 1),
        (None, {"data_parallel_size": 4}, 4),
        ({"replicas": 3}, {}, 3),
        ({"replicas": 4}, {"data_parallel_size": 4}, 4),
        (None, {"additional_config": {"batchllm": {"replicas": 2}}}, 2),
        (None, {"data_parallel_size": 4, "distributed_executor_backend": "external_launcher"}, 1),
        (None, {"data_parallel_size": 1, "enable_expert_parallel": True}, 1),
        ({"replicas": 2}, {"distributed_executor_backend": "external_launcher"}, 1),
    ],
)
def test_how_many_engines_a_call_means(batchllm, kwargs, number):
    assert num_replicas_of(batchllm, kwargs, is_tpu=False) == number


def test_data_parallel_tpus_are_vllms_own_affair():
    assert num_replicas_of(None, {"data_parallel_size": 4}, is_tpu=True) == 1


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"enable_expert_parallel": True}, "enable_expert_parallel with 2 engines"),
        ({"data_parallel_rank": 1}, "data_parallel_rank=1 belongs to one data-parallel rank"),
        ({"scheduler_cls": "my.Scheduler"}, "runs its own scheduler, got scheduler_cls='my"),
        ({"additional_config": {"batchllm": {"replicas": 3}}}, "ask for different numbers"),
    ],
)
def test_what_means_something_else_is_refused(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        LLM("m", data_parallel_size=2, **kwargs)


def test_each_engine_gets_what_is_for_one():
    given = {"data_parallel_size": 2, "tensor_parallel_size": 4, "additional_config": {"x": 1}}
    config, own, options = for_one_engine({"order": "paper", "replicas": 2}, given, 2)
    assert config.replicas == 2
    assert own["batchllm"].replicas == 1
    assert own["batchllm"].order == "paper"
    assert own["additional_config"] == {"x": 1}
    assert "data_parallel_size" not in own
    assert (options.num_replicas, options.world_size) == (2, 4)


class FakePool:
    """Two engines that say what they were asked."""

    def ask_each(self, method, pieces, *args):
        return [[(method, *args, *piece[0], piece[1])] for piece in pieces]

    def ask_all(self, method, *args):
        return [(number, method, *args) for number in range(2)]


def two_engines(runner_type: str = "pooling"):
    llm = object.__new__(ReplicatedLLM)
    llm._num_replicas, llm._pool, llm.runner_type = 2, FakePool(), runner_type
    return llm


@pytest.mark.parametrize("name", ["encode", "embed", "classify"])
def test_pooling_is_split_in_order(name):
    asked = getattr(two_engines(), name)(["a", "b", "c"], pooling_params=[1, 2, 3], lora_request=7)
    given = {"use_tqdm": False, "lora_request": 7}
    assert asked == [
        ("piece", name, ["a", "b"], {**given, "pooling_params": [1, 2]}),
        ("piece", name, ["c"], {**given, "pooling_params": [3]}),
    ]


def test_beams_are_split_in_order():
    asked = two_engines().beam_search(["a", "b"], "params")
    assert [one[2] for one in asked] == [["a"], ["b"]]
    assert {one[3]["params"] for one in asked} == {"params"}


@pytest.mark.parametrize(
    ("first", "second", "pieces"),
    [
        ("q", ["a", "b", "c"], [("q", ["a", "b"]), ("q", ["c"])]),
        (["q", "r"], ["a", "b"], [(["q"], ["a"]), (["r"], ["b"])]),
        ("q", "a", [("q", ["a"])]),
    ],
)
def test_scores_are_split_in_order(first, second, pieces):
    asked = two_engines().score(first, second)
    assert [one[2:4] for one in asked] == pieces


@pytest.mark.parametrize(
    "name",
    ["start_profile", "stop_profile", "reset_mm_cache", "sleep", "release_kv_cache_memory"],
)
def test_what_is_broadcast_reaches_all(name, monkeypatch):
    llm, asked = two_engines(), []
    monkeypatch.setattr(llm._pool, "ask_all", lambda *args: asked.append(args) or [None, None])
    getattr(llm, name)()
    assert asked[0][:2] == ("engine_method", name)


def test_answers_of_all_are_joined(monkeypatch):
    llm = two_engines()
    monkeypatch.setattr(llm._pool, "ask_all", lambda *args: [[1, 2], [3]])
    assert llm.collective_rpc("anything") == [1, 2, 3]
    assert llm.apply_model(len) == [1, 2, 3]
    monkeypatch.setattr(llm._pool, "ask_all", lambda *args: [True, False])
    assert not llm.reset_prefix_cache()
    assert not llm.wake_up()


def test_metrics_say_whose_they_are(monkeypatch):
    llm = two_engines()
    found = [[Counter("vllm:x", {}, 1)], [Counter("vllm:x", {}, 2)]]
    monkeypatch.setattr(llm._pool, "ask_all", lambda *args: found)
    assert [metric.labels for metric in llm.get_metrics()] == [{"replica": "0"}, {"replica": "1"}]


def test_a_pooling_model_does_not_generate():
    with pytest.raises(ValueError, match="only supported for generative models"):
        two_engines().generate(["a"])


def books(prompt_tokens: int, computed: int, tokens: list[list[int]]) -> BatchBooks:
    counters = ScheduleCounters(
        num_steps=2,
        prompt_tokens=prompt_tokens,
        computed_prompt_tokens=computed,
        hash_block_size=4,
        kv_blocks=10,
        held_blocks_peak=5,
        num_memory_steps=2,
        held_blocks=8,
    )
    unlimited: list[None] = [None] * len(tokens)
    return BatchBooks(counters.to_dict(), 1, 0, 7, tokens, [()] * len(tokens), unlimited)


def test_one_report_for_all():
    prompts = [[1] * 8 + [number] for number in range(4)]
    two = [books(18, 10, prompts[:2]), books(18, 10, prompts[2:])]
    report = merged_report(
        two, num_requests=6, num_failed=0, makespan_s=3.0, num_replicas=2, num_restarts=1
    )
    assert (report.prompt_tokens, report.computed_prompt_tokens) == (36, 20)
    assert report.optimal_saved_ratio == pytest.approx(24 / 36)
    assert report.saved_ratio == pytest.approx(16 / 36)
    assert (report.num_duplicates, report.output_tokens) == (2, 14)
    assert report.kv_peak_ratio == pytest.approx(0.5)
    assert report.kv_mean_ratio == pytest.approx(0.2)
    assert "2 (1 restarts)" in str(report)
