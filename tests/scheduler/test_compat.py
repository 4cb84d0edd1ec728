# SPDX-License-Identifier: Apache-2.0
"""The version gate, and the queue's interface."""

from __future__ import annotations

import pytest
from vllm.v1.core.sched.request_queue import RequestQueue

from vllm_batchllm.compat import version as vllm_version
from vllm_batchllm.scheduler.request_queue import PrefixGroupQueue


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
