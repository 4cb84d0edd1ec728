# SPDX-License-Identifier: Apache-2.0
"""A pytest plugin for vLLM's own tests: puts our classes in place of vLLM's, and keeps the log.

Loaded with ``-p substitution`` before any test is imported. What it does is chosen by three
environment variables; every test's outcome and every scheduler built are appended to a file as
they happen, so that even a run that dies says how far it came.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coroutines
import pytest

CLASSES = "VLLM_BATCHLLM_CONFORMANCE_CLASSES"
"""``stock`` or ``ours``."""
MODE = "VLLM_BATCHLLM_CONFORMANCE_MODE"
"""``written``: as the test asks. ``async``: every scheduler asynchronous. ``cached``: every
scheduler with prefix caching."""
LOG = "VLLM_BATCHLLM_CONFORMANCE_LOG"
"""The file of outcomes, one JSON object per line."""
ONLY = "VLLM_BATCHLLM_CONFORMANCE_ONLY"
"""A file of the tests to run, one id a line; all if it is not set."""

SCHEDULER = ("vllm.v1.core.sched.scheduler", "Scheduler")
ASYNC_SCHEDULER = ("vllm.v1.core.sched.async_scheduler", "AsyncScheduler")
WATCHED = (SCHEDULER, ("vllm.v1.core.block_pool", "BlockPool"))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Substitute before anything of the tests is imported; a conftest may import the classes."""
    install_in_engine()


@functools.cache
def install_in_engine() -> None:
    """Watch and substitute, once in a process; vLLM calls it in those that a test starts."""
    for module, name in WATCHED:
        _watch(_get(module, name))
    install(os.environ[CLASSES] == "ours", os.environ[MODE])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One line for each phase of a test."""
    outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    entry = {"id": report.nodeid, "outcome": outcome, "s": report.duration}
    _log(entry | {"why": _cause(report)} if not report.passed else entry)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """One line for a file that cannot be collected, or that skips itself."""
    if not report.passed:
        _log({"id": report.nodeid, "outcome": report.outcome, "why": _cause(report)})


def pytest_itemcollected(item: pytest.Item) -> None:
    """Spare the collection of garbage after each test: it takes ten times as long as the tests."""
    item.add_marker("skip_global_cleanup")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run tests that are coroutines."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    coroutines.run(pyfuncitem)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is not asked for."""
    if ONLY in os.environ:
        wanted = set(Path(os.environ[ONLY]).read_text().split("\n"))
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_collection_finish() -> None:
    """What is imported by now stays; no need to look through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(exitstatus: int) -> None:
    """The last line: the run came to its end."""
    _log({"ended": int(exitstatus)})


def _cause(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What pytest says of a failure or skip, in one line of at most 200 characters."""
    said = report.longrepr
    crash = getattr(said, "reprcrash", None)
    text = said[2] if isinstance(said, tuple) else crash.message if crash else _last_line(said)
    return " ".join(str(text).split())[:200]


def _last_line(said: object) -> str:
    return str(said).strip().rpartition("\n")[2].removeprefix("E ")


def install(ours: bool, mode: str) -> None:
    """Rebind the names by which vLLM, and its tests, find the classes."""
    sync_class, async_class = _get(*SCHEDULER), _get(*ASYNC_SCHEDULER)
    if ours:
        from vllm_batchllm.scheduler.scheduler import AsyncBatchLLMScheduler, BatchLLMScheduler

        sync_class, async_class = BatchLLMScheduler, _of_any_mode(AsyncBatchLLMScheduler)
        _install_memory()
    if mode == "async":
        sync_class = async_class = _forced(async_class, _make_async)
    elif mode == "cached":
        sync_class, async_class = _forced(sync_class, _cache), _forced(async_class, _cache)
    _set(*SCHEDULER, sync_class)
    _set(*ASYNC_SCHEDULER, async_class)


def _of_any_mode(base: type) -> type:
    """``base`` without its look at the engine's mode: the CPU platform turns the asynchronous one
    off in every configuration, and the tests build ``AsyncScheduler`` nevertheless.
    """
    namespace = {"_check_async_mode": lambda self, vllm_config: None, "__module__": base.__module__}
    return type(base.__name__, (base,), namespace)


def _install_memory() -> None:
    """Pool and gate for tests that build them without a scheduler."""
    from vllm_batchllm.kv_cache.block_pool import PrefixAwareBlockPool
    from vllm_batchllm.scheduler.kv_cache_manager import AdmissionControlledKVCacheManager

    stock_pool = _get("vllm.v1.core.block_pool", "BlockPool")

    def pool(num_gpu_blocks: int, enable_caching: bool, *args: Any, **kwargs: Any) -> Any:
        """As in our schedulers: with prefix caching off, everything is vLLM's."""
        chosen = PrefixAwareBlockPool if enable_caching else stock_pool
        return chosen(num_gpu_blocks, enable_caching, *args, **kwargs)

    _set("vllm.v1.core.block_pool", "BlockPool", PrefixAwareBlockPool)
    _set("vllm.v1.core.kv_cache_coordinator", "BlockPool", pool)
    _set("vllm.v1.core.kv_cache_manager", "KVCacheManager", AdmissionControlledKVCacheManager)


def _make_async(vllm_config: Any) -> None:
    vllm_config.scheduler_config.async_scheduling = True


def _cache(vllm_config: Any) -> None:
    vllm_config.cache_config.enable_prefix_caching = True


def _forced(base: type, change: Callable[[Any], None]) -> type:
    """``base``, whose instances change the configuration they are given first."""

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        change(vllm_config)
        base.__init__(self, vllm_config, *args, **kwargs)  # type: ignore[misc]

    return type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__})


def _watch(stock: type) -> None:
    """Log every instance of ``stock`` that is built, and whether its class is ours."""
    original = stock.__init__  # type: ignore[misc]

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        is_ours = any(c.__module__.startswith("vllm_batchllm.") for c in type(self).__mro__)
        _log({"built": stock.__name__, "ours": is_ours})

    stock.__init__ = __init__  # type: ignore[misc]


def _get(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _set(module: str, name: str, value: Any) -> None:
    setattr(importlib.import_module(module), name, value)


def _log(entry: dict[str, Any]) -> None:
    with Path(os.environ[LOG]).open("a") as stream:
        stream.write(json.dumps(entry) + "\n")
