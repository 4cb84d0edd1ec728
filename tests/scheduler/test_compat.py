# SPDX-License-Identifier: Apache-2.0
"""The ledger: every symbol of vLLM that we touch is where we think it is."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from vllm.v1.core.sched.request_queue import RequestQueue

import vllm_batchllm
from vllm_batchllm import compat
from vllm_batchllm.schedule.queue import PrefixGroupQueue

PACKAGE = Path(vllm_batchllm.__file__).parent


@pytest.mark.parametrize("entry", compat.LEDGER, ids=lambda entry: entry.path)
def test_each_symbol_is_there_with_the_parameters_we_use(entry: compat.Touched) -> None:
    target = entry.resolve()
    missing = set(entry.parameters) - set(inspect.signature(target).parameters)
    assert not missing, f"{entry.path} lost {missing}"
    assert entry.why and entry.how and entry.until


def test_every_vllm_attribute_that_we_override_or_assign_is_in_the_ledger() -> None:
    """Private names of vLLM that our subclasses define must be written down."""
    known = {entry.path.rpartition(".")[2] for entry in compat.LEDGER}
    for path, bases in (("llm.py", "StockLLM"), ("schedule/scheduler.py", "Scheduler")):
        tree = ast.parse((PACKAGE / path).read_text())
        for cls in (n for n in tree.body if isinstance(n, ast.ClassDef)):
            if bases not in {ast.unparse(base) for base in cls.bases}:
                continue
            upstream = compat.LEDGER[3].resolve() if bases == "Scheduler" else _stock_llm()
            for method in (n for n in cls.body if isinstance(n, ast.FunctionDef)):
                if hasattr(upstream, method.name) and not method.name.startswith("__"):
                    assert method.name in known, f"{path}: {method.name}"


def _stock_llm() -> type:
    from vllm import LLM

    return LLM


def test_the_queue_interface_has_not_grown() -> None:
    assert RequestQueue.__abstractmethods__ <= set(vars(PrefixGroupQueue))


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.1", "0.32.9.post1"])
def test_supported_versions_pass(version, monkeypatch) -> None:
    monkeypatch.setattr(compat, "installed_vllm_version", lambda: version)
    compat.check_vllm_version()


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.33.0rc1", "1.0", "nonsense", None])
def test_unsupported_versions_are_refused_by_name(version, monkeypatch) -> None:
    monkeypatch.setattr(compat, "installed_vllm_version", lambda: version)
    with pytest.raises(compat.UnsupportedVLLMError, match=r">= 0\.32\.0, < 0\.33") as refusal:
        compat.check_vllm_version()
    assert (version or "not installed") in str(refusal.value)
    monkeypatch.setenv(compat.SKIP_VERSION_CHECK, "1")
    if version is not None:
        compat.check_vllm_version()  # at the user's own risk: no refusal
