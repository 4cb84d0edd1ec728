# SPDX-License-Identifier: Apache-2.0
"""The ledger: every symbol of vLLM that we touch is where we think it is."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from vllm.v1.core.sched.request_queue import RequestQueue

import vllm_batchllm
from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue
from vllm_batchllm.touched import Touched

PACKAGE = Path(vllm_batchllm.__file__).parent


@pytest.mark.parametrize("entry", vllm_version.LEDGER, ids=lambda entry: entry.path)
def test_each_symbol_is_there_with_the_parameters_we_use(entry: vllm_version.Touched) -> None:
    target = entry.resolve()
    missing = set(entry.parameters) - set(inspect.signature(target).parameters)
    assert not missing, f"{entry.path} lost {missing}"
    assert entry.why and entry.how and entry.until


@pytest.mark.parametrize(
    ("path", "base", "upstream"),
    [
        ("llm.py", "StockLLM", "vllm:LLM"),
        ("scheduler/scheduler.py", "Scheduler", "vllm.v1.core.sched.scheduler:Scheduler"),
        (
            "scheduler/kv_cache_manager.py",
            "KVCacheManager",
            "vllm.v1.core.kv_cache_manager:KVCacheManager",
        ),
        ("kv_cache/block_pool.py", "BlockPool", "vllm.v1.core.block_pool:BlockPool"),
        (
            "kv_cache/free_queue.py",
            "FreeKVCacheBlockQueue",
            "vllm.v1.core.kv_cache_utils:FreeKVCacheBlockQueue",
        ),
    ],
)
def test_every_vllm_method_that_we_override_is_in_the_ledger(path, base, upstream) -> None:
    known = {entry.path.rpartition(".")[2] for entry in vllm_version.LEDGER}
    stock = Touched(upstream, "", "", "").resolve()
    tree = ast.parse((PACKAGE / path).read_text())
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    ours = [n for n in classes if base in {ast.unparse(each) for each in n.bases}]
    assert ours, f"{path} subclasses {base} no more"
    for method in (n for cls in ours for n in cls.body if isinstance(n, ast.FunctionDef)):
        if hasattr(stock, method.name) and not method.name.startswith("__"):
            assert method.name in known, f"{path}: {method.name}"


def test_the_queue_interface_has_not_grown() -> None:
    assert RequestQueue.__abstractmethods__ <= set(vars(PrefixGroupQueue))


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1", "0.32.9.post1"])
def test_supported_versions_pass(version, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: version)
    vllm_version.check_vllm_version()


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.33.0rc1", "1.0", "nonsense", None])
def test_unsupported_versions_are_refused_by_name(version, monkeypatch) -> None:
    monkeypatch.setattr(vllm_version, "installed_vllm_version", lambda: version)
    with pytest.raises(vllm_version.UnsupportedVLLMError, match=r">= 0\.32\.0, < 0\.33") as refusal:
        vllm_version.check_vllm_version()
    assert (version or "not installed") in str(refusal.value)
    monkeypatch.setenv(vllm_version.SKIP_VERSION_CHECK, "1")
    if version is not None:
        vllm_version.check_vllm_version()  # at the user's own risk: no refusal
