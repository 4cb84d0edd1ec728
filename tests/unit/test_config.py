# SPDX-License-Identifier: Apache-2.0
"""Options are checked, and a refusal says what is allowed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from vllm_batchllm.config import OPTIONS, BatchLLMConfig, allowed
from vllm_batchllm.ordering.policies import ORDERS


def test_defaults_and_round_trip() -> None:
    config = BatchLLMConfig.parse(None)
    assert config == BatchLLMConfig.parse({}) == BatchLLMConfig.parse(config.to_dict())
    assert BatchLLMConfig.parse(config) is config
    assert set(config.to_dict()) == set(OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ordr": "dfs"},
            r"unknown batchllm option 'ordr' \(value 'dfs'\); did you mean 'order'\? Known",
        ),
        (
            {"order": "lifo"},
            r"'order' = 'lifo' is not allowed; allowed: 'dfs', 'decode-ratio', 'short-first'",
        ),
        ({"max_wait_s": -1}, r"'max_wait_s' = -1 is not allowed; allowed: a number > 0"),
        ({"max_wait_s": float("nan")}, r"'max_wait_s' = nan is not allowed"),
        ({"max_wait_s": "10"}, r"'max_wait_s' = '10' is not allowed"),
        ({"lookahead": 0}, r"'lookahead' = 0 is not allowed; allowed: a whole number >= 1 and <= "),
        ({"lookahead": 2 * 10**9}, r"'lookahead' = 2000000000 is not allowed"),
        ({"max_wait_s": 2e9}, r"'max_wait_s' = 2000000000.0 is not allowed"),
        ({"kv_threshold": 1.1}, r"'kv_threshold' = 1.1 is not allowed"),
        ({"lookahead": True}, r"'lookahead' = True is not allowed"),
        ({"dedupe": "yes"}, r"'dedupe' = 'yes' is not allowed; allowed: true, false"),
        ({"dedupe": 1, "lookahead": -3}, r"'lookahead' = -3 .*; batchllm option 'dedupe' = 1"),
    ],
)
def test_bad_options_are_named_with_what_is_allowed(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        BatchLLMConfig.parse(options)


@pytest.mark.parametrize(
    "options",
    [
        {"order": "x" * 100_000},
        {"lookahead": 10**5000},
        {"lookahead": list(range(100_000))},
        {"max_wait_s": {"x" * 100_000: "y" * 100_000}},
        {"x" * 100_000: "y" * 100_000},
        ["x" * 100_000] * 100,
    ],
    ids=["long word", "long number", "long list", "long mapping", "long key", "no mapping"],
)
def test_a_refusal_is_short_whatever_is_refused(options) -> None:
    with pytest.raises((ValueError, TypeError)) as refusal:
        BatchLLMConfig.parse(options)
    assert len(str(refusal.value)) < 1000 and "\n" not in str(refusal.value)


def test_every_option_has_bounds_or_a_list_of_values() -> None:
    """No option takes text or numbers without limit."""
    for name in OPTIONS:
        words = allowed(name)
        is_listed = "'" in words or "true, false" in words
        assert is_listed or ("<" in words and ">" in words), f"{name}: {words}"


def test_every_order_can_be_chosen() -> None:
    assert allowed("order") == ", ".join(map(repr, ORDERS))
    for name in ORDERS:
        assert BatchLLMConfig.parse({"order": name}).order == name


def test_options_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be a mapping such as .* got 'dfs'"):
        BatchLLMConfig.parse("dfs")  # type: ignore[arg-type]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        BatchLLMConfig().order = "dfs"  # type: ignore[misc]


def test_planning_and_options_do_not_load_vllm() -> None:
    code = (
        "import sys, vllm_batchllm, vllm_batchllm.config, vllm_batchllm.prefix.best_saving, "
        "vllm_batchllm.plan.command, vllm_batchllm.ordering.group_queue, vllm_batchllm.cli; "
        "print([m for m in ('vllm', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_threshold": 0.0}, "'kv_threshold' = 0.0 is not allowed"),
        ({"admission": "lax"}, "'admission' = 'lax' is not allowed"),
        (
            {"admission": "stock", "kv_threshold": 0.5},
            r"'kv_threshold' = 0.5 has no effect with admission 'stock' \(order 'dfs'\); leave it",
        ),
        ({"kv_threshold": 0.5}, "'kv_threshold' = 0.5 has no effect with admission 'future'"),
    ],
)
def test_contradictory_admission_options_are_refused_by_name(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        BatchLLMConfig.parse(options)


def test_the_published_order_brings_the_published_admission() -> None:
    assert BatchLLMConfig.parse({"order": "paper"}).admission_rule == "threshold"
    assert BatchLLMConfig.parse({}).admission_rule == "future"
    both = BatchLLMConfig.parse({"order": "paper", "admission": "future"})
    assert both.admission_rule == "future"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_hold_s": 1.0}, "'max_hold_s' = 1 has no effect without 'release'"),
        ({"one_shot_tokens": 4}, "'one_shot_tokens' = 4 has no effect without 'release'"),
        ({"power_weight": 2.0}, "'power_weight' = 2 has no effect without 'release'"),
        ({"release": "groups", "power_weight": 2.0}, "'power_weight' = 2 is for one-shot requests"),
        ({"release": "one-shot", "wait_weight": 0.5}, "'wait_weight' = 0.5 is for prefix groups"),
        ({"wait_weight": 0.5}, "'wait_weight' = 0.5 is for prefix groups"),
        ({"release": "all", "idle_power_w": 5.0}, "'idle_power_w' = 5 has no effect"),
        (
            {"release": "all", "power_weight": 1.0, "idle_power_w": 5.0},
            "'idle_power_w' = 5.0 and 'busy_power_w' = None: give both",
        ),
        (
            {"release": "all", "power_weight": 1.0, "idle_power_w": 5.0, "busy_power_w": 5.0},
            "'busy_power_w' = 5 must be above 'idle_power_w' = 5",
        ),
        ({"target_tbt_ms": 5.0, "spread_prefills": True}, "both say how large a step is"),
        ({"target_tbt_ms": 0.0}, "'target_tbt_ms' = 0.0 is not allowed; allowed: a number > 0"),
        (
            {"release": "some"},
            "'release' = 'some' is not allowed; allowed: 'one-shot', 'groups', 'all'",
        ),
        ({"max_hold_s": 1e5}, "'max_hold_s' = 100000.0 is not allowed"),
        ({"power_weight": -1.0}, "'power_weight' = -1.0 is not allowed"),
    ],
)
def test_options_of_servers_that_make_no_sense_are_refused(options, says) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        BatchLLMConfig.parse(options)
