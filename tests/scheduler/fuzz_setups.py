# SPDX-License-Identifier: Apache-2.0
"""Schedulers of every kind that the state machine is run on, and the requests that come to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fake_engine import make_vllm_config
from fuzz_engine import Clock, FuzzEngine
from hypothesis import strategies as st
from pooled import KV_GROUPS, make
from vllm.config import KVTransferConfig, SpeculativeConfig, VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

from vllm_batchllm.admission.environment import Environment
from vllm_batchllm.admission.hints import MAX_HINT
from vllm_batchllm.ordering.policies import ORDERS
from vllm_batchllm.scheduler.encoder_gate import EncoderGate
from vllm_batchllm.scheduler.scheduler import create_scheduler

BLOCK_SIZE = 4
NUM_DRAFTS = 3
IMAGE_TOKENS = 3

ONLINE: dict[str, dict[str, Any]] = {
    "steps": {"target_tbt_ms": 5.0},
    "classes": {"target_ttft_ms": 20.0},
    "one-shot": {"release": "one-shot", "one_shot_tokens": 4, "max_hold_s": 0.05},
    "groups": {"release": "groups", "max_hold_s": 0.05},
    "all": {
        "release": "all",
        "max_hold_s": 0.1,
        "target_tbt_ms": 20.0,
        "power_weight": 1.0,
        "idle_power_w": 50.0,
        "busy_power_w": 300.0,
    },
}
"""Options for servers, by name."""

setups = st.fixed_dictionaries(
    {
        "order": st.sampled_from(sorted(ORDERS)),
        "admission": st.sampled_from(["future", "future", "threshold", "stock"]),
        "policy": st.sampled_from(["fcfs", "priority"]),
        "groups": st.sampled_from(
            [
                "full",
                "full",
                "full + sliding window",
                "full, blocks of two hashes, + sliding window",
            ]
        ),
        "max_wait_s": st.sampled_from([None, None, 0.05]),
        "online": st.sampled_from([None] * 6 + sorted(ONLINE)),
        "num_blocks": st.sampled_from([24, 40]),
        "on_failure": st.sampled_from(["recompute", "fail"]),
        "is_v2": st.booleans(),
    }
)
"""is_v2: as with vLLM's second model runner, which is told of resumed requests as of new ones."""

prompts = st.one_of(
    st.builds(
        lambda document, cut, tail: [document + 1] * cut + tail,
        st.integers(0, 3),
        st.sampled_from(range(2, 24)),
        st.lists(st.integers(10, 11), max_size=5),
    ),
    st.lists(st.integers(20, 40), min_size=1, max_size=30),
    st.just([9] * 17),
    st.just([5] * 300),  # never fits
)
hints = st.sampled_from(
    [None] * 6 + [1, 5, 20, MAX_HINT, MAX_HINT + 1, 0, -3, True, 2.5, "5", [1], {}]
)

arrivals = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "max_tokens": st.sampled_from(range(1, 30)),
        "hint": hints,
        "salt": st.sampled_from([None] * 4 + ["a", "b"]),
        "priority": st.integers(0, 2),
        "stops": st.booleans(),
        "reads_cache": st.sampled_from([True] * 7 + [False] * 3),
        "readable_tokens": st.none() | st.integers(0, 40),
        "kind": st.sampled_from(["plain"] * 5 + ["session"] * 3 + ["grammar"]),
        "image": st.sampled_from([None, *range(8)]),
    }
)
transfers = st.fixed_dictionaries(
    {
        "tokens": st.integers(0, 30),
        "is_async": st.booleans(),
        "undecided": st.integers(0, 2),
        "delay": st.integers(0, 5),
        "fails": st.sampled_from([False, False, True]),
        "saves": st.integers(0, 4),
    }
)


def images(image: int | None, num_tokens: int) -> list[MultiModalFeatureSpec]:
    """One of eight images at one of two places of a prompt, if there is one and it is long enough."""
    if image is None or num_tokens <= 2 * IMAGE_TOKENS:
        return []
    place = PlaceholderRange(offset=image % 2 * IMAGE_TOKENS, length=IMAGE_TOKENS)
    return [
        MultiModalFeatureSpec(
            data=None, modality="image", identifier=f"image {image}", mm_position=place
        )
    ]


def is_good_hint(hint: object) -> bool:
    return hint is None or (type(hint) is int and 1 <= hint <= MAX_HINT)


@lru_cache(maxsize=512)
def vllm_config(
    model: str,
    feature: str,
    is_async: bool,
    policy: str,
    num_blocks: int,
    on_failure: str,
    options: tuple[tuple[str, Any], ...],
) -> VllmConfig:
    config = make_vllm_config(
        model,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        max_num_seqs=5,
        max_num_batched_tokens=24,
        policy=policy,
        async_scheduling=is_async,
        options=dict(options),
    )
    if feature == "drafts":
        config.speculative_config = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=NUM_DRAFTS,
            prompt_lookup_max=2,
            target_model_config=config.model_config,
            target_parallel_config=config.parallel_config,
        )
    if feature == "connector":
        config.kv_transfer_config = KVTransferConfig(
            kv_connector="FakeConnector",
            kv_connector_module_path="fake_connector",
            kv_role="kv_both",
            kv_load_failure_policy=on_failure,
        )
    return config


def make_engine(model: str, feature: str, is_async: bool, setup: dict[str, Any]) -> FuzzEngine:
    """An engine around a new scheduler; ``feature`` is "plain", "drafts", "connector" or "images"."""
    names = ("order", "admission", "max_wait_s")
    online = setup.get("online")
    if online == "classes" and setup["policy"] != "priority":
        online = None
    options = tuple((name, setup[name]) for name in names) + tuple(ONLINE.get(online, {}).items())
    config = vllm_config(
        model,
        feature,
        is_async,
        setup["policy"],
        setup["num_blocks"],
        setup["on_failure"],
        options,
    )
    specs = KV_GROUPS[setup["groups"]]
    scheduler = make(create_scheduler, config, specs, environment=Environment("cpu", Clock()))
    scheduler.use_v2_model_runner = setup["is_v2"]
    if feature == "images":  # two in a step, three encoded ones kept
        scheduler.max_num_encoder_input_tokens = 2 * IMAGE_TOKENS
        scheduler.encoder_cache_manager = EncoderCacheManager(3 * IMAGE_TOKENS)
        scheduler.prefix_queue.encoder = EncoderGate(most_refused=2)
    return FuzzEngine(scheduler, specs)
