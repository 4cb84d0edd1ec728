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

    @property
    def admission_rule(self) -> str:
        """The rule of admission that is used."""
        return self.admission or ("threshold" if self.order == "paper" else "future")

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
