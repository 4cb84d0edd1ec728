# SPDX-License-Identifier: Apache-2.0
"""Settings shared by all rings of tests."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# One process, both cores, a small cache: what the machine-independent tests need of vLLM.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # spinning threads starve on a busy machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

# Triton's kernels run in its interpreter here; read when Triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

for ring in ("unit", "scheduler", "engine", "attention", "upstream", "ledger"):
    sys.path.insert(0, str(Path(__file__).parent / ring))
sys.path.insert(0, str(Path(__file__).parent))

import archive
from fuzz_budget import Budget

settings.register_profile("default", deadline=None, max_examples=100)
settings.register_profile(
    "fuzz", deadline=None, max_examples=2000, suppress_health_check=list(HealthCheck)
)
settings.load_profile("default")

_budget = Budget()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--on-next",
        action="store_true",
        help="refuse to run on any vLLM but the next one, of .next (see patches/next_overlay)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """A row of CI that says it tests the next vLLM does so.

    Raises:
        pytest.UsageError: another one is installed.
    """
    if config.getoption("--on-next") and archive.installed() != archive.NEXT:
        raise pytest.UsageError(
            f"--on-next: vLLM {archive.installed().version} is imported here, not "
            f"{archive.NEXT.version}. `make next`, and put .next first on PYTHONPATH"
        )


@pytest.fixture
def heard(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What our loggers say, whatever vLLM has set for its own, below which they are."""
    for name in ("vllm", "vllm.batchllm"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level("INFO", logger=name)
    return caplog


@pytest.fixture(scope="session")
def fuzz_budget() -> Budget:
    """Counts the steps of all fuzz tests of this session."""
    return _budget


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _budget.done:
        terminalreporter.section("fuzz")
        terminalreporter.write_line(_budget.summary())
