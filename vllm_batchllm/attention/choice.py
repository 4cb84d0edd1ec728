# SPDX-License-Identifier: Apache-2.0
"""Whether an engine reads shared KV once: the option ``shared_attention``, what can be served, and what was measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from vllm_batchllm.attention.speed_records import RecordKey, SpeedRecord, record_for

Option = Literal["auto", "on", "off"]

BACKENDS = {
    "cuda": "vllm_batchllm.attention.flash.SharedFlashBackend",
    "rocm": "vllm_batchllm.attention.portable.SharedTritonBackend",
    "cpu": "vllm_batchllm.attention.cpu.SharedCPUBackend",
}
"""By platform."""

FULL_ATTENTION = "full_attention"
"""vLLM's name of the kind of layers that keep all tokens: the others keep their backend."""


class Choice(NamedTuple):
    """use: whether shared attention is used. line: why or why not, for the log."""

    use: bool
    line: str


def choose(
    option: Option, reasons: Sequence[str], key: RecordKey | None, records: Iterable[SpeedRecord]
) -> Choice:
    """Decide.

    reasons: what stands against it, each by name. key: None where there is no device that could have been measured.

    Raises:
        ValueError: it was asked for and cannot be served.
    """
    if option == "off":
        return Choice(False, "off, as chosen")
    against = "; ".join(reasons)
    if option == "on":
        if reasons:
            raise ValueError(
                f"batchllm option 'shared_attention' = 'on' cannot be served here: {against}. Leave it out, or set it "
                "to 'off'"
            )
        return Choice(True, "on, as chosen")
    if reasons:
        return Choice(False, f"off: {against}")
    if key is None:
        return Choice(False, "off: nothing to be measured on this platform")
    record = record_for(key, records)
    if record is None:
        return Choice(False, f"off: no record for {key}; benchmarks/gpu/engine.py makes one")
    if not record.is_worth_it:
        return Choice(False, f"off: measured {record}")
    return Choice(True, f"on: measured {record}")


def use_shared_attention(vllm_config: Any, option: Option) -> Choice:
    """Decide for an engine, and set its backend where it is used. To be called before the engine starts.

    Raises:
        ValueError: it was asked for and cannot be served.
    """
    if option == "off":
        return choose(option, (), None, ())
    from vllm_batchllm.attention import device
    from vllm_batchllm.attention.limits import engine_reasons
    from vllm_batchllm.attention.speed_records import known_records

    platform = device.platform_of()
    reasons = [*platform.reasons, *engine_reasons(vllm_config)]
    on_gpu = platform.name in ("cuda", "rocm")
    if platform.name == "cpu" and option == "on":
        reasons += device.cpu_reasons(vllm_config)
    if on_gpu:
        reasons += device.head_size_reasons(vllm_config.model_config.get_head_size())
        other = device.somebody_elses_backend()
        reasons += (
            [f"vLLM's place for a custom attention backend is taken by {other}"] if other else []
        )
    key = device.record_key(vllm_config) if on_gpu and not reasons else None
    choice = choose(option, reasons, key, known_records())
    if choice.use:
        device.offer_backends(platform.name)
        if on_gpu:
            from vllm.v1.attention.backends.registry import AttentionBackendEnum

            vllm_config.attention_config.backend_per_kind[FULL_ATTENTION] = (
                AttentionBackendEnum.CUSTOM
            )
    return choice
