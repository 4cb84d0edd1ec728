# SPDX-License-Identifier: Apache-2.0
"""One place that turns a specification into engine arguments, for every arm.

A benchmark that builds its engines in two places will one day compare two configurations
instead of two schedulers. So `engine_kwargs` builds what both arms get, `arm_kwargs` adds the
scheduler and nothing else, and `engines.Engines` compares the live configurations again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from vllm_batchllm.compat.names import BATCHLLM_SCHEDULER
from vllm_batchllm.errors import UsageError, unknown_name
from vllm_batchllm.plugin import by_environment

STOCK, SORTED, BATCHLLM = "stock", "sorted", "batchllm"
WATERMARK_OF_ARM = {"tuned-0.02": 0.02, "tuned-0.05": 0.05}
"""Sorted stock vLLM as somebody would run it who has read its options: `performance_mode=throughput`,
and the watermark against preemptions."""
TUNED = tuple(WATERMARK_OF_ARM)
ARMS = (STOCK, SORTED, *TUNED, BATCHLLM)
#: `sorted` is stock vLLM with another order of requests, so it can run in stock's engine.
ENGINE_OF_ARM = {arm: arm for arm in ARMS} | {SORTED: STOCK}
STOP_PROCESSOR = "vllm_batchllm.bench.forced_stop:ForcedStopProcessor"

#: Only a ceiling for vLLM's own memory check; `kv_blocks` sets the real size. GiB.
_CPU_KV_SPACE = "4"
_GPU_MEMORY_SHARE = 0.8
#: Threads that wait for each other by spinning make a run 10 times as long once anything else
#: wants a core; spinning briefly costs a few percent on an idle machine. libgomp reads it once,
#: when torch is imported.
_GOMP_SPINCOUNT = "1000"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything that an engine of the benchmark is built from, the scheduler left out.

    Attributes:
        model: folder or name of the model.
        kv_blocks: KV capacity, blocks of `block_size` tokens; 0 for what vLLM finds room for.
        max_model_len: longest prompt + output, tokens.
        block_size: tokens per block; a multiple of 32 on the CPU.
        dtype: float32 makes outputs comparable token for token.
        max_num_batched_tokens: tokens per step at most.
        max_num_seqs: running requests at most.
        seed: the engine's seed.
        lengths_known: False installs the processor that ends requests with a stop token.
        set_sizes: which of the two sizes above the user has set; `performance_mode=throughput` leaves
            those alone.
        num_engines: that live in the process at once.
        skip_tokenizer_init: prompts are token ids; no tokenizer is loaded.
        batchllm_options: options of the batchllm scheduler as (key, value) pairs.
        extra: further vLLM engine arguments as (key, value) pairs, the same for all arms.
    """

    model: str
    kv_blocks: int
    max_model_len: int
    block_size: int = 32
    dtype: str = "float32"
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    seed: int = 0
    lengths_known: bool = True
    set_sizes: tuple[str, ...] = ()
    num_engines: int = 2
    skip_tokenizer_init: bool = True
    batchllm_options: tuple[tuple[str, Any], ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()


def prepare_environment() -> bool:
    """Set what in-process engines need from the environment; return True on the CPU platform.

    Values the user has set are kept, except that engines must live in this process: the
    recorder watches their scheduler.

    Raises:
        UsageError: vLLM is not installed.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.pop(by_environment.VARIABLE, None)  # an arm is what its name says
    if is_cpu_build() and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _GOMP_SPINCOUNT)
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UsageError(f"the benchmark needs vLLM, which cannot be imported: {error}") from error
    on_cpu = bool(current_platform.is_cpu())
    if on_cpu:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", _CPU_KV_SPACE)
    return on_cpu


def share_cpu_memory() -> None:
    """Before `prepare_environment`: where engines size their KV themselves, a GiB for each, which is touched at once.

    Unless the user has set how much.
    """
    if is_cpu_build():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def is_cpu_build() -> bool:
    """Whether the installed vLLM is a CPU build, told from its metadata without importing it."""
    for name in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return name == "vllm-cpu" or "cpu" in version
    return False


def engine_kwargs(spec: EngineSpec, *, on_cpu: bool) -> dict[str, Any]:
    """The engine arguments that all arms share."""
    kwargs: dict[str, Any] = {
        "model": spec.model,
        "block_size": spec.block_size,
        "num_gpu_blocks_override": spec.kv_blocks or None,
        "max_model_len": spec.max_model_len,
        "dtype": spec.dtype,
        "max_num_batched_tokens": spec.max_num_batched_tokens,
        "max_num_seqs": spec.max_num_seqs,
        "seed": spec.seed,
        "skip_tokenizer_init": spec.skip_tokenizer_init,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
    }
    if on_cpu:
        kwargs |= {"distributed_executor_backend": "uni", "enforce_eager": True}
    else:
        # All engines live on the device at once; KV is sized in blocks, not by this share.
        kwargs["gpu_memory_utilization"] = round(_GPU_MEMORY_SHARE / spec.num_engines, 3)
    if not spec.lengths_known:
        kwargs["logits_processors"] = [STOP_PROCESSOR]
    return kwargs | dict(spec.extra)


def arm_kwargs(spec: EngineSpec, arm: str, *, on_cpu: bool) -> dict[str, Any]:
    """`engine_kwargs` plus the scheduler of the arm, or the options that tune stock's: the only
    difference there is.

    Raises:
        UsageError: unknown arm.
    """
    if arm not in ENGINE_OF_ARM:
        raise unknown_name("arm", arm, ARMS)
    kwargs = engine_kwargs(spec, on_cpu=on_cpu)
    if arm in WATERMARK_OF_ARM:
        kwargs["watermark"] = WATERMARK_OF_ARM[arm]
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if name not in spec.set_sizes:  # twice, as vLLM does where nobody has set them
                kwargs[name] *= 2
    if ENGINE_OF_ARM[arm] == BATCHLLM:
        kwargs["scheduler_cls"] = BATCHLLM_SCHEDULER
        if spec.batchllm_options:
            additional = dict(kwargs.get("additional_config") or {})
            kwargs["additional_config"] = additional | {"batchllm": dict(spec.batchllm_options)}
    return kwargs


def build_engine(spec: EngineSpec, arm: str) -> Any:
    """Start an in-process `vllm.LLM` for the arm.

    Raises:
        UsageError: unknown arm, no vLLM, or vLLM refuses the arguments.
    """
    on_cpu = prepare_environment()
    kwargs = arm_kwargs(spec, arm, on_cpu=on_cpu)
    from vllm import LLM

    try:
        return LLM(**kwargs)
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(f"vLLM refused to start the engine of arm {arm!r}: {error}") from error


def scheduler_of(llm: Any) -> Any:
    """The live scheduler of an in-process engine.

    Raises:
        UsageError: the engine runs in another process.
    """
    core = getattr(llm.llm_engine.engine_core, "engine_core", None)
    if core is None:
        raise UsageError(
            "the engine runs in another process; set VLLM_ENABLE_V1_MULTIPROCESSING=0 before "
            "it is built"
        )
    return core.scheduler
