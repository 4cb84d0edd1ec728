# SPDX-License-Identifier: Apache-2.0
"""Shared attention on a device that is not here: which backend vLLM's own config gets, and what it then answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_engine import make_vllm_config
from fake_platform import FakePlatform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from vllm_batchllm.attention import choice, device, speed_records
from vllm_batchllm.attention.speed_records import SpeedRecord, write_record
from vllm_batchllm.compat.version import installed_minor

H100 = "NVIDIA H100 80GB HBM3"


class FakeGPU(FakePlatform):
    """Also what a backend is chosen by."""

    device_name = "cuda"

    def __init__(self, kind: str, name: str, major: int) -> None:
        super().__init__(kind, name, 80)
        self.major = major

    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def is_rocm(self) -> bool:
        return self.kind == "rocm"

    def get_device_capability(self) -> DeviceCapability:
        return DeviceCapability(self.major, 0)


@pytest.fixture
def on_gpu(llama: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's config of a Llama as on a GPU, with heads and a type that GPUs serve; nothing is left behind."""
    monkeypatch.setattr(speed_records, "own_folder", lambda: tmp_path)
    monkeypatch.setattr(device.os, "environ", dict(device.os.environ))

    def make(kind: str = "cuda", name: str = H100, major: int = 9, head_size: int = 128) -> Any:
        config = make_vllm_config(llama)
        monkeypatch.setattr("vllm.platforms.current_platform", FakeGPU(kind, name, major))
        config.model_config.dtype = torch.bfloat16
        monkeypatch.setattr(type(config.model_config), "get_head_size", lambda _: head_size)
        return config

    yield make
    AttentionBackendEnum.CUSTOM.clear_override()


def keep(gain: float) -> None:
    write_record(
        SpeedRecord(H100, 128, "bfloat16", installed_minor(), {"2000x16": gain}, 1.0, "a day")
    )


def chosen(config: Any) -> Any:
    return config.attention_config.backend_per_kind.get("full_attention")


def test_on_gets_its_backend_and_auto_without_a_record_does_not(on_gpu: Any) -> None:
    config = on_gpu()
    found = choice.use_shared_attention(config, "auto")
    assert not found.use and f"no record for {H100}, heads of 128, bfloat16 KV" in found.line
    assert chosen(config) is None and not AttentionBackendEnum.CUSTOM.is_overridden()
    assert choice.use_shared_attention(config, "on").use
    assert chosen(config) is AttentionBackendEnum.CUSTOM
    assert AttentionBackendEnum.CUSTOM.get_path() == choice.BACKENDS["cuda"]
    assert device.os.environ[device.CHOSEN] == "cuda"  # for the processes of the engine


@pytest.mark.parametrize("gain", [1.3, 1.0])
def test_auto_goes_by_the_record(on_gpu: Any, gain: float) -> None:
    keep(gain)
    config = on_gpu()
    found = choice.use_shared_attention(config, "auto")
    assert found.use is (gain > 1.02)
    assert f"measured {gain:.2f}x at best" in found.line
    assert (chosen(config) is AttentionBackendEnum.CUSTOM) is found.use


def test_off_looks_at_nothing(on_gpu: Any) -> None:
    keep(1.3)
    config = on_gpu()
    assert choice.use_shared_attention(config, "off") == (False, "off, as chosen")
    assert chosen(config) is None


@pytest.mark.parametrize(
    ("gpu", "words"),
    [
        ({"major": 7}, "compute capability 7.0"),
        ({"major": 12}, "compute capability 12.0"),
        ({"head_size": 72}, "heads of 72; served are 64"),
        ({"kind": "other", "name": "TPU"}, "the platform 'cuda'"),
    ],
)
def test_what_has_no_tiles_is_refused_by_name(on_gpu: Any, gpu: dict[str, Any], words: str) -> None:
    keep(1.3)
    config = on_gpu(**gpu)
    assert words in choice.use_shared_attention(config, "auto").line
    with pytest.raises(
        ValueError, match=f"'shared_attention' = 'on' cannot be served here: .*{words}"
    ):
        choice.use_shared_attention(config, "on")
    assert chosen(config) is None


def test_amd_gets_the_portable_one(on_gpu: Any) -> None:
    config = on_gpu("rocm", "AMD Instinct MI300X")
    assert choice.use_shared_attention(config, "on").use
    assert AttentionBackendEnum.CUSTOM.get_path() == choice.BACKENDS["rocm"]


@pytest.mark.parametrize("backend", list(choice.BACKENDS.values())[:2])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"head_size": 72}, "head_size not supported"),
        ({"has_sliding_window": True}, "sliding window not supported"),
        ({"use_rswa": True}, "R-SWA not supported"),
        ({"use_non_causal": True}, "non-causal attention not supported"),
        ({"use_batch_invariant": True}, "batch invariance not supported"),
        ({"use_mla": True}, "MLA not supported"),
        ({"use_pcp": True}, "PCP not supported"),
        ({"use_dcp": True}, "DCP not supported"),
        ({"use_per_head_quant_scales": True}, "per-head quant scales not supported"),
        ({"use_mm_prefix": True}, "partial multimodal token full attention not supported"),
        ({"attn_type": "encoder_only"}, "attention type encoder_only not supported"),
        ({"kv_cache_dtype": "nvfp4"}, "kv_cache_dtype not supported"),
        ({"dtype": torch.float64}, "dtype not supported"),
    ],
)
def test_vllm_refuses_by_name_what_a_backend_does_not_serve(
    backend: str, changes: dict[str, Any], reason: str | None
) -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    asked = {
        "head_size": 128,
        "dtype": torch.bfloat16,
        "kv_cache_dtype": "auto",
        "block_size": 16,
        "use_mla": False,
        "has_sink": False,
        "use_sparse": False,
        "use_mm_prefix": False,
        "use_per_head_quant_scales": False,
        "device_capability": DeviceCapability(9, 0),
        "attn_type": "decoder",
    }
    reasons = resolve_obj_by_qualname(backend).validate_configuration(**asked | changes)
    assert reasons == [] if reason is None else reason in reasons


def test_the_line_of_the_log(on_gpu: Any, heard: pytest.LogCaptureFixture) -> None:
    from vllm_batchllm.plugin import registration

    registration._choose_attention(on_gpu())
    (line,) = [r.getMessage() for r in heard.records if "Shared attention" in r.getMessage()]
    assert line.startswith("Shared attention: off: no record for")
