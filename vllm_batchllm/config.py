# SPDX-License-Identifier: Apache-2.0
"""The options of the plugin: one frozen dataclass, validated, importable without vLLM.

They come from ``LLM(batchllm={...})``, from ``additional_config={"batchllm": {...}}`` or from
``--additional-config '{"batchllm": {...}}'``; all three end in :meth:`BatchLLMConfig.parse`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vllm_batchllm.messages import clip

SECTION = "batchllm"
"""Key of our options inside vLLM's ``additional_config``."""

MAX_COUNT = 10**9
"""No number of requests that an option gives is larger."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class BatchLLMConfig:
    """Options of vllm-batchllm. Every field has a default that suits a batch."""

    order: Literal["dfs", "decode-ratio", "short-first", "paper", "exact-groups"] = "dfs"
    """Which prefix group is opened next."""

    max_wait_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Longest wait of any request, seconds: one that waits longer is admitted next and its
    group with it. None for no limit: right for a batch, where only the makespan counts."""

    lookahead: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """``LLM`` only: at most this many unfinished requests in the engine at once; None for all."""

    head_start_s: Annotated[float, Field(ge=0, le=1e9)] | None = 0.5
    """``LLM`` only: seconds of rendering and queueing after which the engine begins, while the rest of the
    batch is still being queued. None queues the whole batch before the first step."""

    dedupe: bool = True
    """``LLM`` only: compute exact duplicates under greedy decoding once."""

    admission: Literal["future", "threshold", "stock"] | None = None
    """How many requests run at once. ``future``: as many as the memory holds until they end;
    ``threshold``: while the KV blocks held stay within ``kv_threshold`` (the published rule);
    ``stock``: whatever fits now. None: ``threshold`` for the order ``paper``, else ``future``."""

    kv_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    """Admission ``threshold``: share of the KV memory. None is 0.9."""

    spread_prefills: bool = False
    """On GPUs, where memory lets few requests run at once: smaller steps, so that prompts are
    computed beside the decodes and not in bursts between them. Needs admission ``future``. Such
    steps are larger than CUDA graphs are captured for, and what that costs no device has measured
    yet: so it is a choice."""

    rank_affinity: bool = True
    """Several data-parallel ranks behind one ``vllm serve`` only: a request goes to the rank that has its
    prefix, unless that has much more to do than the others."""

    shared_attention: Literal["auto", "on", "off"] = "auto"
    """Whether KV that several requests share is read once in each step. ``auto``: where a measurement of
    this device and model's shape says that it pays; one line of the log says which, or that there is none."""

    target_tbt_ms: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Servers only: milliseconds between two tokens of a request that 99 of 100 steps keep, as far as decoding
    alone does. Steps are as large as that allows by what steps have cost so far. None for vLLM's fixed size."""

    target_ttft_ms: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Servers with ``--scheduling-policy priority`` only: milliseconds until the first token of an interactive
    request (priority 0 or less), for which batch requests (priority above 0) give way."""

    release: Literal["one-shot", "groups", "all"] | None = None
    """Servers only: what may be held back for a moment. ``one-shot``: requests of at most ``one_shot_tokens``, until a
    batch is worth serving (arXiv 2501.02181). ``groups``: who would compute a prefix alone that others are about to ask for.
    ``all``: both. None holds nobody."""

    max_hold_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    """With ``release``: longest hold of any request, seconds. None is 0.5."""

    one_shot_tokens: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """With ``release``: requests with at most so many output tokens are one shot, as are pooling requests. None is 1."""

    power_weight: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """With ``release``: milliseconds of mean response time that a watt of mean power is worth."""

    wait_weight: Annotated[float, Field(ge=0, le=1e9)] = 1.0
    """With ``release`` of groups: what a second that a held request waits counts against a second by which the waiting of
    everybody else is shortened. 1 holds where waiting becomes less in all; 0 wherever prompt tokens are saved."""

    idle_power_w: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """With ``power_weight``: power of the device when it waits, watts. None asks the device."""

    busy_power_w: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """With ``power_weight``: power of the device in a step, watts. None asks the device."""

    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    """``LLM`` only: engines, each with the whole model, that share every batch; Ray places them. The same as
    ``data_parallel_size``, which vLLM's ``LLM`` refuses."""

    def __post_init__(self) -> None:
        for name, needed in NEEDS_ADMISSION.items():
            if getattr(self, name) is not None and self.admission_rule != needed:
                raise ValueError(
                    f"batchllm option {name!r} = {getattr(self, name)!r} has no effect with "
                    f"admission {self.admission_rule!r} (order {self.order!r}); leave it out, or "
                    f"set 'admission' = {needed!r}"
                )
        self._check_release()
        if self.target_tbt_ms is not None and self.spread_prefills:
            raise ValueError(
                f"batchllm option 'spread_prefills' = True and 'target_tbt_ms' = {self.target_tbt_ms:g} both "
                "say how large a step is; leave one of them out"
            )

    def _check_release(self) -> None:
        """Options that only holding requests reads, and which devices can draw that power."""
        for name in ("max_hold_s", "one_shot_tokens", "power_weight"):
            if self.release is None and getattr(self, name):
                raise ValueError(
                    f"batchllm option {name!r} = {getattr(self, name):g} has no effect without 'release'; leave it "
                    "out, or set 'release' to 'one-shot', 'groups' or 'all'"
                )
        for name in ("power_weight", "one_shot_tokens"):
            if self.release == "groups" and getattr(self, name):
                raise ValueError(
                    f"batchllm option {name!r} = {getattr(self, name):g} is for one-shot requests, and 'release' = "
                    "'groups' does not hold those; leave it out, or set 'release' = 'all'"
                )
        if self.wait_weight != 1 and self.release in (None, "one-shot"):
            raise ValueError(
                f"batchllm option 'wait_weight' = {self.wait_weight:g} is for prefix groups, and 'release' = "
                f"{self.release!r} holds none; leave it out, or set 'release' = 'groups' or 'all'"
            )
        for name in ("idle_power_w", "busy_power_w"):
            if getattr(self, name) is not None and not self.power_weight:
                raise ValueError(
                    f"batchllm option {name!r} = {getattr(self, name):g} has no effect while 'power_weight' is 0; leave "
                    "it out, or say what a watt is worth"
                )
        idle, busy = self.idle_power_w, self.busy_power_w
        if (idle is None) != (busy is None):
            raise ValueError(
                f"batchllm options 'idle_power_w' = {idle} and 'busy_power_w' = {busy}: give both, or neither to ask the device"
            )
        if idle is not None and busy is not None and busy <= idle:
            raise ValueError(
                f"batchllm option 'busy_power_w' = {busy:g} must be above 'idle_power_w' = {idle:g}"
            )

    @property
    def admission_rule(self) -> str:
        """The rule of admission that is used."""
        return self.admission or ("threshold" if self.order == "paper" else "future")

    @property
    def reads_clock(self) -> list[str]:
        """Options in use by which two schedulers with clocks of their own would decide differently."""
        names = ("max_wait_s", "target_tbt_ms", "target_ttft_ms", "release")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def hold_s(self) -> float:
        """Longest hold of a request, seconds."""
        return self.max_hold_s or 0.5

    @classmethod
    def parse(cls, options: BatchLLMConfig | Mapping[str, Any] | None) -> BatchLLMConfig:
        """Check ``options`` and fill in the defaults.

        Raises:
            TypeError: ``options`` is no mapping.
            ValueError: an unknown key, or a value of the wrong type or out of range; the
                message names the key, the value, and what is allowed.
        """
        if options is None:
            return cls()
        if isinstance(options, cls):
            return options
        if not isinstance(options, Mapping):
            raise TypeError(
                f"batchllm options must be a mapping such as {{'order': 'dfs'}}, "
                f"got {clip(options)}"
            )
        for key in options:
            if key not in OPTIONS:
                raise ValueError(_unknown_key(key, options[key]))
        try:
            return cls(**options)
        except ValidationError as error:
            raise ValueError("; ".join(map(_bad_value, error.errors()))) from None

    def to_dict(self) -> dict[str, Any]:
        """The options as plain JSON values; :meth:`parse` takes them back."""
        return asdict(self)


NEEDS_ADMISSION = {
    "kv_threshold": "threshold",
}
"""Options that only one rule of admission reads."""

OPTIONS = tuple(field.name for field in fields(BatchLLMConfig))


def _unknown_key(key: object, value: object) -> str:
    word = key[:100] if isinstance(key, str) else ""
    close = difflib.get_close_matches(word, OPTIONS, n=1, cutoff=0.0)
    return (
        f"unknown batchllm option {clip(key)} (value {clip(value)}); did you mean {close[0]!r}? "
        f"Known options: {', '.join(OPTIONS)}"
    )


def _bad_value(error: Any) -> str:
    if not error["loc"]:  # several options together
        return str(error["ctx"]["error"])
    key = str(error["loc"][0])
    value = clip(error["input"])
    return f"batchllm option {key!r} = {value} is not allowed; allowed: {allowed(key)}"


def allowed(key: str) -> str:
    """The values that option ``key`` takes, in words."""
    field = BatchLLMConfig.__pydantic_fields__[key]  # type: ignore[attr-defined]
    annotation: Any = field.annotation
    for bound in field.metadata:
        annotation = Annotated[annotation, bound]
    schema = TypeAdapter(annotation).json_schema()
    return " or ".join(_describe(part) for part in schema.get("anyOf", [schema]))


def _describe(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(repr(value) for value in schema["enum"])
    if schema["type"] == "boolean":
        return "true, false"
    words = {"integer": "a whole number", "number": "a number", "null": "null"}[schema["type"]]
    bounds = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {_number(schema[name])}" for name, sign in bounds.items() if name in schema]
    return " ".join([words, " and ".join(limits)]).strip()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
