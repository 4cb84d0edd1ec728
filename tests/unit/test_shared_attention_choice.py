# SPDX-License-Identifier: Apache-2.0
"""Whether shared attention is used: the option, what stands against it, and made-up records."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from vllm_batchllm import BatchLLMConfig
from vllm_batchllm.attention.choice import choose
from vllm_batchllm.attention.limits import engine_reasons, is_chosen, layer_reason
from vllm_batchllm.attention.speed_records import (
    RecordKey,
    SpeedRecord,
    known_records,
    read_record,
    write_record,
)

KEY = RecordKey("NVIDIA H100 80GB HBM3", 128, "bfloat16", "0.32")


def record(best=1.3, nothing=1.0, **more):
    found = KEY._asdict() | more
    return SpeedRecord(
        **found, gains={"512x4": 0.98, "2000x16": best}, nothing_shared=nothing, measured="a day"
    )


def test_auto_needs_a_record_of_this_device_shape_and_version():
    assert choose("auto", (), KEY, [record()]).use
    assert (
        choose("auto", (), KEY, [record()]).line
        == "on: measured 1.30x at best, 1.000x with nothing shared (a day)"
    )
    for other in (
        {"device": "NVIDIA A100"},
        {"head_size": 64},
        {"kv_type": "fp8"},
        {"vllm_minor": "0.33"},
    ):
        choice = choose("auto", (), KEY, [record(**other)])
        assert not choice.use
        assert choice.line.startswith(
            "off: no record for NVIDIA H100 80GB HBM3, heads of 128, bfloat16 KV, vLLM 0.32"
        )


@pytest.mark.parametrize(
    ("best", "nothing", "use"),
    [(1.02, 0.99, True), (1.019, 1.0, False), (1.5, 0.989, False)],
)
def test_auto_needs_a_gain_and_no_loss(best, nothing, use):
    choice = choose("auto", (), KEY, [record(best, nothing)])
    assert choice.use is use
    assert "measured" in choice.line


def test_the_first_record_counts():
    assert not choose("auto", (), KEY, [record(1.0), record(1.5)]).use


def test_on_is_refused_by_name_and_auto_steps_back():
    reasons = ["multi-head latent attention (MLA)", "enable_dbo = True"]
    with pytest.raises(
        ValueError, match=r"'shared_attention' = 'on'.*MLA.*enable_dbo = True.*'off'"
    ):
        choose("on", reasons, KEY, [record()])
    assert choose("auto", reasons, KEY, [record()]) == (False, "off: " + "; ".join(reasons))
    assert choose("off", reasons, KEY, [record()]) == (False, "off, as chosen")
    assert choose("on", (), None, ()).use
    assert not choose("auto", (), None, [record()]).use


def test_records_are_kept_and_damaged_ones_left_out(tmp_path, heard):
    file = write_record(record(), tmp_path)
    assert file.name == "NVIDIA_H100_80GB_HBM3-128-bfloat16-0.32.json"
    (tmp_path / "another.json").write_text("{}")
    (tmp_path / "broken.json").write_text("{")
    assert known_records(tmp_path)[0] == record()
    assert len(known_records(tmp_path)) == len(known_records(tmp_path / "none")) + 1
    for name in ("another.json", "broken.json"):
        assert name in heard.text
    wrong = json.loads(file.read_text()) | {"gains": {"512x4": "much"}}
    assert read_record(json.dumps(wrong), "wrong.json") is None
    assert read_record("[]", "list.json") is None


def test_the_option_takes_three_words():
    assert BatchLLMConfig().shared_attention == "auto"
    with pytest.raises(
        ValueError, match="'shared_attention' = 'yes' is not allowed; allowed: 'auto', 'on', 'off'"
    ):
        BatchLLMConfig.parse({"shared_attention": "yes"})


def engine(**changes):
    """A configuration as far as it is looked at."""
    parallel = SimpleNamespace(
        decode_context_parallel_size=1, prefill_context_parallel_size=1, enable_dbo=False
    )
    found = {
        "model_config": SimpleNamespace(use_mla=False, is_mm_prefix_lm=False, rswa_window=None),
        "parallel_config": parallel,
        "speculative_config": None,
        "cache_config": SimpleNamespace(cache_dtype="auto"),
        "attention_config": SimpleNamespace(
            backend=None, backend_per_kind={}, use_non_causal=False
        ),
        "additional_config": {},
    }
    for path, value in changes.items():
        part, _, name = path.partition("__")
        if name:
            setattr(found[part], name, value)
        else:
            found[part] = value
    return SimpleNamespace(**found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"model_config__use_mla": True}, "MLA"),
        ({"model_config__is_mm_prefix_lm": True}, "in both directions inside images"),
        ({"model_config__rswa_window": 512}, "R-SWA of 512 tokens"),
        ({"attention_config__use_non_causal": True}, "not causal"),
        ({"parallel_config__decode_context_parallel_size": 2}, "decode_context_parallel_size = 2"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "prefill_context_parallel_size = 2"),
        ({"parallel_config__enable_dbo": True}, "enable_dbo"),
        ({"speculative_config": SimpleNamespace(method="eagle")}, "'eagle'"),
        ({"speculative_config": SimpleNamespace(method="ngram")}, None),
        ({"cache_config__cache_dtype": "fp8_e5m2"}, "kv_cache_dtype = 'fp8_e5m2'"),
        ({"cache_config__cache_dtype": "fp8"}, None),
        ({"attention_config__backend": SimpleNamespace(name="FLASHINFER")}, "FLASHINFER, chosen by you"),
        ({"attention_config__backend": SimpleNamespace(name="FLASH_ATTN")}, None),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_share_is_named(changes, words):
    reasons = engine_reasons(engine(**changes))
    assert [words in reason for reason in reasons] == ([] if words is None else [True])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"sinks": object()}, "attention sinks"),
        ({"alibi_slopes": object()}, "ALiBi slopes"),
        ({"logits_soft_cap": 30.0}, "a soft cap of the logits (30)"),
        ({"sliding_window": (127, 0)}, "a sliding window of 128 tokens"),
        ({"attn_type": "encoder_only"}, "attention of type encoder_only"),
        ({"fa4_hd256": True}, "FlashAttention 4 with heads of 256"),
    ],
)
def test_what_a_layer_cannot_share_is_named(changes, words):
    plain = {
        "sinks": None,
        "alibi_slopes": None,
        "logits_soft_cap": 0,
        "sliding_window": (-1, -1),
        "attn_type": "decoder",
    }
    assert layer_reason(SimpleNamespace(**plain | changes)) == words


def test_only_on_counts_as_chosen():
    for value, chosen in (("on", True), ("auto", False), ("off", False)):
        options = {"batchllm": {"shared_attention": value}}
        assert is_chosen(SimpleNamespace(additional_config=options)) is chosen
    assert not is_chosen(SimpleNamespace(additional_config=None))


@pytest.mark.parametrize(
    ("capability", "words"),
    [
        ((8, 6), None),
        ((9, 0), None),
        ((10, 0), None),
        ((7, 5), "7.5"),
        ((12, 0), "12.0"),
        (None, "unknown"),
    ],
)
def test_devices_without_tiles_are_named(monkeypatch, capability, words):
    from vllm.platforms import current_platform

    from vllm_batchllm.attention.device import capability_reasons

    found = capability and SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(type(current_platform), "get_device_capability", lambda *_, **__: found)
    expected = [] if words is None else [f"no tiles are shipped for compute capability {words}"]
    assert capability_reasons() == expected


def test_a_custom_backend_of_somebody_else_is_left_alone():
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from vllm_batchllm.attention.choice import BACKENDS
    from vllm_batchllm.attention.device import somebody_elses_backend

    custom = AttentionBackendEnum.CUSTOM
    try:
        assert somebody_elses_backend() is None
        register_backend(custom, "their.Backend")
        assert somebody_elses_backend() == "their.Backend"
        register_backend(custom, BACKENDS["cuda"])
        assert somebody_elses_backend() is None
    finally:
        custom.clear_override()


@pytest.mark.parametrize(
    ("installed", "words"),
    [("3.7.1", []), ("3.1.0", ["Triton 3.1.0; 3.2 or newer is needed"])],
)
def test_an_old_triton_is_named(monkeypatch, installed, words):
    import triton

    from vllm_batchllm.attention import device

    monkeypatch.setattr(triton, "__version__", installed)
    assert device.triton_reasons() == words
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert device.triton_reasons() == ["Triton is not installed"]


def test_batch_invariance_is_named(monkeypatch):
    monkeypatch.setattr("vllm.envs.VLLM_BATCH_INVARIANT", True, raising=False)
    assert engine_reasons(engine()) == ["VLLM_BATCH_INVARIANT = 1"]


@pytest.mark.parametrize(
    ("dtype", "cache", "refused"),
    [("float32", "auto", False), ("bfloat16", "auto", True), ("float32", "fp8", True)],
)
def test_a_cpu_engine_in_another_type_is_refused(dtype, cache, refused):
    from vllm_batchllm.attention.device import cpu_reasons

    config = engine(cache_config__cache_dtype=cache)
    config.model_config.dtype = f"torch.{dtype}"
    assert [
        f"not dtype {dtype} with kv_cache_dtype {cache!r}" in each for each in cpu_reasons(config)
    ] == ([True] if refused else [])
